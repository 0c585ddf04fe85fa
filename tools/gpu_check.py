"""Every check that needs a GPU, in one call of a few minutes, as JSON.

    python tools/gpu_check.py --out gpu_check.json             # on a GPU, at the 8B shapes
    python tools/gpu_check.py --small --out gpu_check.json     # anywhere: tiny shapes, proves that it runs
    python tools/gpu_check.py --only training sampling         # some of the sections

Sections: `attention` (everything that tools/bench_attention.py measures: errors against fp64, forward and
backward of every backend beside its peers, decode, metadata), `training` (one step of as many 8B layers as
fit; MFU from the live mask against a measured matmul) and `sampling` (text steps and chunk passes a second
against a full cache, in bf16 and in fp8). A section that fails reports its error and the others go on; the
exit code is then 1. The JSON is written after every section, so that a run cut short keeps what it found;
`tools/gpu_report.py gpu_check.json` makes Markdown tables of it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatv.log import main_guard
from megatv.regular_file import require_place
from megatv.untrusted import parse_json


def main() -> int:
    """Run the sections, print and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny shapes, for a machine without a GPU")
    sections = ("attention", "training", "sampling", "stream")
    parser.add_argument("--only", nargs="+", choices=sections, metavar="SECTION")
    parser.add_argument("--out", type=Path, help="write the JSON here as well")
    arguments = parser.parse_args()
    require_place(arguments.out)
    # these import torch, which takes seconds
    from gpu_sections import check_setting, machine, sampling, stream, training
    from time_attention import measure

    config, device = check_setting(arguments.small)
    checks: dict[str, Callable[[], Any]] = {
        "attention": lambda: measure(arguments.small),
        "training": lambda: training(config, device),
        "sampling": lambda: sampling(config, device),
        "stream": lambda: stream(device),
    }
    chosen = arguments.only or sections
    report: dict[str, Any] = {"machine": machine(device), "seconds": {}}
    for name in chosen:
        started = time.perf_counter()
        if len(chosen) > 1:
            report[name] = in_a_process(name, arguments.small)
        else:
            try:
                report[name] = checks[name]()
            except Exception as error:  # one broken section must not hide the other figures
                report[name] = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
            print(name, json.dumps(report[name], indent=1), flush=True)
        report["seconds"][name] = round(time.perf_counter() - started, 1)
        if arguments.out:
            arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    return int(any("error" in report[name] for name in chosen))


def in_a_process(name: str, small: bool) -> Any:
    """The section, in a process of its own: a kernel that faults spoils all later calls of its process."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "section.json"
        command = [sys.executable, __file__, "--only", name, "--out", str(out), *["--small"] * small]
        code = subprocess.run(command, check=False).returncode
        if out.exists():
            return parse_json(out.read_text())[name]
        return {"error": f"its process ended with code {code} and wrote nothing"}


if __name__ == "__main__":
    main_guard(main)
