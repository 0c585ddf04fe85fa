#!/usr/bin/env bash
# Make .venv with megatv and all that it imports; sourced, it activates it too.
#
#   source launch/setup.sh [dev]      dev: pytest, ruff and mypy too
#
# Packages come as launch/lock/ names them: one version each, and only files whose hash it lists (tools/lock.py). A
# second run finds nothing to do and takes no time; an interrupted one goes on. On a Linux machine without an NVIDIA
# GPU torch is the CPU build and nothing of CUDA is downloaded; with a GPU, a torch >= 2.11 that Python already has
# is kept (.venv then sees the system's packages).

if [[ ${BASH_SOURCE[0]} != "$0" ]]; then
    bash "${BASH_SOURCE[0]}" "$@" && source "$(dirname "${BASH_SOURCE[0]}")/../.venv/bin/activate"
    return
fi

set -euo pipefail
cd "$(dirname "$0")/.."
extra=${1:-}
say() { printf '[setup] %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }
trap 'exit 130' INT  # else pip alone would end, and what comes after a failed download would begin
[[ -z $extra || $extra == dev ]] || fail "launch/setup.sh takes nothing or 'dev', not '$extra'"

# The stamp names the state of .venv by the files that decide it. It is written last: it means that all went well.
stamp=.venv/.megatv-$(cat launch/lock/*.txt pyproject.toml setup.py launch/setup.sh | cksum | tr ' ' -)
if [[ -e $stamp-dev || (-z $extra && -e $stamp) ]]; then exit 0; fi

gpu=false
if nvidia-smi -L 2>/dev/null | grep -q GPU; then gpu=true; fi

if [[ ! -x .venv/bin/pip ]]; then
    for python in python3 python3.13 python3.12 python3.11 none; do
        "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && break
    done
    [[ $python != none ]] || fail "no Python 3.11, 3.12 or 3.13 on PATH; install one, e.g. apt install python3.11-venv"
    options=()
    if $gpu && "$python" -c 'import sys, torch; sys.exit([*map(int, torch.__version__.split(".")[:2])] < [2, 11])' \
        2>/dev/null; then options=(--system-site-packages); fi
    say "making .venv with $("$python" --version)"
    "$python" -m venv --clear "${options[@]}" .venv ||
        fail "'$python -m venv' does not work here; on Debian and Ubuntu: apt install python3-venv"
fi
pip() { .venv/bin/python -m pip "$@" -qq --disable-pip-version-check; }
version() { .venv/bin/python -c "from importlib.metadata import version; print(version('$1'))" 2>/dev/null; }

locked() {  # locked FILE... [-- OPTION...]: install what these files of launch/lock/ name
    local arguments=()
    while (($#)) && [[ $1 != -- ]]; do arguments+=(-r "launch/lock/$1.txt"); shift; done
    # No dependencies: the lock holds all that is needed. Wheels only: so no package runs code to be installed.
    pip install --no-deps --require-hashes --only-binary :all: "${arguments[@]}" "${@:2}"
}
refused="a package could not be had as launch/lock/ names it (the lines above say which and why)"

if ! version torch >/dev/null; then
    torch=$(grep -o '^torch==[0-9.]*' launch/lock/torch.txt)
    if [[ $(uname) != Linux ]]; then
        say "installing $torch"
        locked torch || fail "$refused"
    elif $gpu; then
        say "installing $torch and CUDA's libraries (several GB)"
        locked torch cuda gpu || fail "$refused"
    else
        say "installing $torch for CPU (about 200 MB)"
        # PyPI never holds "+cpu" builds, so this cannot bring CUDA. A mirror may hold one: ask pip's own index first.
        # Then PyTorch's index, in its place and not beside it. Whoever answers, the hash decides.
        locked torch-cpu 2>/dev/null || locked torch-cpu -- --index-url https://download.pytorch.org/whl/cpu ||
            fail "no CPU build of $torch for $(.venv/bin/python --version) whose hash is in launch/lock/torch-cpu.txt" \
                "at download.pytorch.org; is it reachable?"
    fi
fi

say "installing what megatv imports (about 200 MB, 900 MB with dev; a minute or two)"
files=(build core)
if [[ $extra == dev ]]; then
    files+=(data dev)
    if ! version triton >/dev/null; then files+=(gpu); fi  # nothing may replace the triton that came with torch
fi
locked "${files[@]}" || fail "$refused"
# deepspeed comes as source only. Its hash is checked first; then it is built with the tools of launch/lock/build.txt
# and the torch that are here, which is what "no build isolation" means: nothing is downloaded for the build.
# DS_BUILD_OPS=0 leaves its C++ parts to be compiled when first used.
DS_BUILD_OPS=0 pip install --no-deps --require-hashes --no-binary :all: --no-build-isolation \
    -r launch/lock/source.txt || fail "$refused"
pip install --no-deps --no-build-isolation -e .
rm -f .venv/.megatv-*
touch "$stamp${extra:+-$extra}"
say "ready: torch $(version torch), $(du -sh .venv | cut -f1) in .venv"
