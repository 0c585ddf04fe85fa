"""The CUDA kernels as machine code for sm_90a: the compiler's report, what it wrote, and how it is kept."""

import re
import stat
import struct
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from megatv_kernels import cuda_attention, cuda_build

needs_nvcc = pytest.mark.skipif(cuda_build.find_nvcc() is None, reason="needs nvcc")

KERNELS = {  # threads, and registers of a thread after setmaxnreg: who copies, who computes
    "attention_forward": (512, 32, 160),
    "attention_backward": (384, 24, 240),
    "attention_backward_keys": (384, 24, 240),
    "attention_backward_queries": (384, 24, 240),
}
ROWWISE = ("attention_statistics", "attention_round")

# The low 12 bits of a 16-byte sm_90 instruction, as cuobjdump --dump-sass shows them.
OPCODES = {"HGMMA": 0xDF0, "UTMALDG": 0x5B4, "UTMAREDG": 0x3B6, "USETMAXREG": 0x9C8, "STSM": 0x844}
OPCODES |= {"LDL": 0x983, "STL": 0x387}
HGMMA_WITH_SHARED_A = 0x9F0


def sections(image):
    """Sections of an ELF file by name."""
    (table,), (count, names) = struct.unpack_from("<Q", image, 40), struct.unpack_from("<HH", image, 60)
    headers = [struct.unpack_from("<IIQQQQ", image, table + 64 * i) for i in range(count)]
    text = image[headers[names][4] :]
    named = {text[h[0] :].split(b"\0")[0].decode(): h for h in headers}
    return {name: image[h[4] : h[4] + h[5]] for name, h in named.items()}


def opcodes(image, kernel):
    code = sections(image)[f".text.{kernel}"]
    return Counter(word & 0xFFF for (word,) in struct.iter_unpack("<Q8x", code))


@pytest.fixture(
    scope="module", params=[(e, d) for e in cuda_build.ELEMENTS for d in cuda_build.HEAD_DIMS], ids=str
)
def compiled(request, tmp_path_factory):
    """(what nvcc said, the cubin) of one variant."""
    nvcc = cuda_build.find_nvcc()
    if nvcc is None:
        pytest.skip("needs nvcc")
    output = tmp_path_factory.mktemp("cubin") / "attention.cubin"
    command = [*cuda_build.command(nvcc, *request.param, output), "-Xptxas", "-v"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return made.stdout + made.stderr, output.read_bytes()


@pytest.mark.slow
def test_compiler_reports_no_spill_and_no_lost_performance(compiled):
    """C7508: setmaxnreg ignored; C7510 to C7520: wgmma serialised or given fences that the source lacks."""
    report, _ = compiled
    assert not re.findall(r"\(C\d+\)", report), report
    found = re.findall(
        r"entry function '(\w+)' for 'sm_90a'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers",
        report,
        re.DOTALL,
    )
    assert {name for name, *_ in found} == {*KERNELS, *ROWWISE}
    for name, *memory, registers in found:
        assert memory == ["0", "0", "0"], name
        if name in KERNELS:  # what a block is given must do for all that its warpgroups ask for, or it hangs
            threads, copying, computing = KERNELS[name]
            assert int(registers) * threads <= 65536
            assert copying * 128 + computing * (threads - 128) <= int(registers) * threads


@pytest.mark.slow
def test_machine_code_is_hopper_s(compiled):
    _, image = compiled
    for kernel in (*KERNELS, *ROWWISE):
        count = opcodes(image, kernel)
        assert sum(count.values()) > 40
        assert not count[OPCODES["LDL"]] and not count[OPCODES["STL"]], kernel
    for kernel in KERNELS:
        count = opcodes(image, kernel)
        assert count[OPCODES["HGMMA"]] and count[HGMMA_WITH_SHARED_A] and count[OPCODES["UTMALDG"]], kernel
        assert count[OPCODES["USETMAXREG"]] == 2 and count[OPCODES["STSM"]], kernel
    assert [k for k in KERNELS if opcodes(image, k)[OPCODES["UTMAREDG"]]] == ["attention_backward"]


@pytest.mark.slow
def test_host_finds_each_kernel_s_shape(compiled):
    _, image = compiled
    names = sections(image)[".strtab"].split(b"\0")
    assert {f"{kernel}_shape".encode() for kernel in (*KERNELS, *ROWWISE)} <= set(names)


@pytest.fixture
def toolkit(tmp_path, monkeypatch):
    """A CUDA_HOME whose nvcc takes a moment, counts its calls and copies its arguments to its output."""
    nvcc = tmp_path / "toolkit/bin/nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(
        "#!/bin/sh\ncase $1 in --version) echo release 13.0; exit;; esac\n"
        'echo called >> "$(dirname "$0")/calls"\nsleep 0.2\n'
        'for last; do :; done\necho "$@" > "$last"\n'
    )
    nvcc.chmod(nvcc.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    monkeypatch.setenv("MEGATV_KERNELS_CACHE", str(tmp_path / "cache"))
    return nvcc


def calls(nvcc):
    return len((nvcc.parent / "calls").read_text().splitlines())


def test_kernels_are_compiled_once_per_machine(toolkit):
    with ThreadPoolExecutor(4) as pool:
        images = set(pool.map(lambda _: cuda_build.image("float16", 64), range(4)))
    assert len(images) == 1 and calls(toolkit) == 1
    text = images.pop().decode()
    assert "-DMEGATV_ELEMENT=__half" in text and "-DMEGATV_HEAD_DIM=64" in text
    assert cuda_build.image("float16", 128) != cuda_build.image("bfloat16", 128) and calls(toolkit) == 3


def test_changed_sources_are_compiled_again(toolkit, tmp_path, monkeypatch):
    cuda_build.image("bfloat16", 64)
    changed = tmp_path / "cuda"
    changed.mkdir()
    for source in cuda_build.SOURCES.glob("*.*"):
        (changed / source.name).write_bytes(source.read_bytes() + b"\n")
    monkeypatch.setattr(cuda_build, "SOURCES", changed)
    cuda_build.image("bfloat16", 64)
    assert calls(toolkit) == 2
    assert not cuda_build.is_installed()
    for element in cuda_build.ELEMENTS:
        for head_dim in cuda_build.HEAD_DIMS:
            cuda_build.build(element, head_dim, changed)
    assert cuda_build.is_installed() and calls(toolkit) == 6
    installed = cuda_build.build("bfloat16", 64, changed).read_bytes()
    assert cuda_build.image("bfloat16", 64) == installed and calls(toolkit) == 7


def test_another_compiler_compiles_again(toolkit):
    cuda_build.image("bfloat16", 64)
    toolkit.write_text(toolkit.read_text().replace("release 13.0", "release 13.1"))
    cuda_build.image("bfloat16", 64)
    assert calls(toolkit) == 2


def test_failed_compilation_leaves_nothing_and_says_why(toolkit, tmp_path):
    toolkit.write_text("#!/bin/sh\necho 'sm_90a is beyond me' >&2\nexit 1\n")
    with pytest.raises(RuntimeError, match="sm_90a is beyond me"):
        cuda_build.image("bfloat16", 128)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_machines_without_a_hopper_or_a_compiler_are_told_what_is_missing(monkeypatch):
    assert "needs a Hopper GPU" in cuda_attention.available("cpu")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert "cuda:0 has 8.0" in cuda_attention.available("cuda:0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(cuda_build, "find_nvcc", lambda: None)
    assert "needs nvcc" in cuda_attention.available("cuda:0")
    monkeypatch.setattr(cuda_build, "is_installed", lambda: True)
    assert cuda_attention.available("cuda:0") is None


def test_missing_compiler_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(cuda_build, "find_nvcc", lambda: None)
    monkeypatch.setenv("MEGATV_KERNELS_CACHE", str(tmp_path))
    with pytest.raises(RuntimeError, match="install the CUDA toolkit"):
        cuda_build.image("bfloat16", 128)
