"""Write NOTICE: the licence of every package that launch/lock/ puts into .venv, by its SPDX name.

    python tools/notice.py            # in .venv, after tools/lock.py

Licences are what installed packages say of themselves. For those whose words are
ambiguous, and for those that this machine does not install, the tables below have what their licence files
say. A package without a licence, or with one that is not in ADMITTED, is an error.
"""

from __future__ import annotations

import argparse
import re
from email.message import Message
from importlib import metadata

from lock import LOCK, ROOT, pins
from megatv.log import main_guard

# What the field `License` and the classifiers say, where it can only mean one licence.
WORDS = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache Software License 2.0": "Apache-2.0",
    "BSD 3-Clause": "BSD-3-Clause",
    "BSD 3-Clause License": "BSD-3-Clause",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "NVIDIA Proprietary Software": "LicenseRef-NVIDIA-Proprietary",
}
# From licence files: packages whose metadata name no version of a licence, or are wrong.
READ = {
    "astunparse": "BSD-3-Clause",
    "cycler": "BSD-3-Clause",
    "hjson": "MIT OR AFL-2.1",
    "huggingface-hub": "Apache-2.0",
    "itsdangerous": "BSD-3-Clause",
    "jinja2": "BSD-3-Clause",
    "kiwisolver": "BSD-3-Clause",
    "libcst": "MIT",
    "matplotlib": "LicenseRef-Matplotlib",
    "mosaicml-streaming": "Apache-2.0",
    "mpmath": "BSD-3-Clause",
    "numpy": "BSD-3-Clause",
    "nvidia-libnvcomp-cu13": "LicenseRef-NVIDIA-Proprietary",
    "python-dateutil": "Apache-2.0 OR BSD-3-Clause",
    "python-snappy": "BSD-3-Clause",
    "safetensors": "Apache-2.0",
    "sympy": "BSD-3-Clause",
    # the same for all builds
    "torch": (
        "Apache-2.0 AND Apache-2.0 WITH LLVM-exception AND BSD-2-Clause AND BSD-3-Clause AND BSL-1.0 AND MIT"
    ),
    "tokenizers": "Apache-2.0",
    "zstd": "BSD-2-Clause",
}
# From metadata: packages that not every machine installs.
ELSEWHERE = {
    "cuda-bindings": "Apache-2.0",
    "cuda-pathfinder": "Apache-2.0",
    "cuda-toolkit": "LicenseRef-NVIDIA-Proprietary",
    "gast": "BSD-3-Clause",
    "makefun": "BSD-3-Clause",
    "nvidia-dali-cuda130": "Apache-2.0",
    "nvidia-nvimgcodec-cu13": "Apache-2.0",
    "nvidia-nvtx": "Apache-2.0",
    "nvtx": "Apache-2.0 WITH LLVM-exception",
    "optree": "Apache-2.0",
    "pyyaml-ft": "MIT",
    "triton": "MIT",
}
# May be used beside Apache-2.0 code; MPL-2.0 binds changes to the package's own files.
ADMITTED = {
    "AFL-2.1",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CNRI-Python",
    "LicenseRef-Matplotlib",
    "LicenseRef-NVIDIA-Proprietary",
    "MIT",
    "MIT-0",
    "MIT-CMU",
    "MPL-2.0",
    "PSF-2.0",
}
# Titles of the list, and the files of launch/lock/ under each.
PARTS = {
    "What megatv imports": ("build", "source", "torch", "core"),
    "Only with an NVIDIA GPU (triton: for the tests too)": ("gpu", "cuda"),
    "The extra `data`": ("data",),
    "Only for development": ("dev",),
}
HEAD = """\
megatv
Licensed under the Apache License, Version 2.0 (LICENSE).

The packages below are installed by launch/setup.sh from their own publishers and are no part of this
repository. Their licences are named by SPDX identifiers (tools/notice.py writes this list);
LicenseRef-Matplotlib is matplotlib's licence, which follows Python's.

For those who ship an image or another copy of an environment with these packages in it:

- PyAV (av) is BSD-3-Clause, but its wheels contain x264 and x265, which are under the GPL
  (GPL-2.0-or-later), beside an FFmpeg that calls itself LGPL-3.0-or-later. Whoever passes such a wheel on
  passes GPL software on, with the duties that the GPL sets (source code, licence texts). megatv's own code
  stays under Apache-2.0. To ship without them, build PyAV from source against an FFmpeg without libx264 and
  libx265; megatv then cannot write its videos, for which it asks for libx264.
- opencv-python-headless is Apache-2.0, but its wheels contain FFmpeg under the LGPL (LGPL-2.1-or-later) and
  OpenSSL: their libraries must stay replaceable and their notices be kept.
- numpy, opencv and other wheels built by GCC contain libgfortran or libgomp (GPL-3.0-or-later with the GCC
  Runtime Library Exception, which permits this).
- Packages under LicenseRef-NVIDIA-Proprietary (CUDA's libraries, nvCOMP, nvJPEG and others) may be passed on
  only as NVIDIA's licence agreements in them allow. nvidia-dali-cuda130 is Apache-2.0, and its wheel contains
  libraries of NVIDIA's and an FFmpeg under the LGPL.
- Packages under MPL-2.0 ask that changes to their own files be published.
- H.264, H.265 and AAC are covered by patents in some countries, whatever the licence of the code.

Models and data (Llama's tokenizer and weights, Cosmos, Wan, I3D, recordings of CS:GO) have their own
licences, are read from local paths and never shipped.
"""


def normal(name: str) -> str:
    """A package's name as launch/lock/ writes it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def said(about: Message) -> str | None:
    """The licence that metadata name by an SPDX expression, or in words that mean only one; else None."""
    if expression := about.get("License-Expression"):
        return expression
    classifiers = [line.rpartition(" :: ")[2] for line in about.get_all("Classifier") or []]
    for words in ((about.get("License") or "").partition("\n")[0], *classifiers):
        if words in ADMITTED or all(part in ADMITTED for part in parts_of(words)):
            return words
        if words in WORDS:
            return WORDS[words]
    return None


def parts_of(expression: str) -> list[str]:
    """The licences that an SPDX expression joins."""
    return re.split(r" (?:AND|OR) ", expression.replace("(", "").replace(")", ""))


def licences() -> dict[str, str]:
    """Licence by package of what launch/lock/ puts into .venv. Raises ValueError with those in doubt."""
    installed = {normal(found.metadata["Name"]): found.metadata for found in metadata.distributions()}
    found: dict[str, str] = {}
    for files in PARTS.values():
        for name in (name for file in files for name in pins((LOCK / f"{file}.txt").read_text())):
            by_itself = said(installed[name]) if name in installed else None  # type: ignore[arg-type]
            proprietary = "LicenseRef-NVIDIA-Proprietary" if name.startswith("nvidia-") else ""
            found[name] = READ.get(name) or by_itself or ELSEWHERE.get(name) or proprietary
    if doubtful := sorted(name for name in found if not set(parts_of(found[name])) <= ADMITTED):
        raise ValueError(
            "no licence that tools/notice.py admits: "
            + ", ".join(f"{name} ({found[name] or 'says none'})" for name in doubtful)
            + "; read their licence files, then add them to READ or ADMITTED"
        )
    return found


def notice() -> str:
    """The text of NOTICE."""
    found = licences()
    text = HEAD
    for title, files in PARTS.items():
        names = sorted(name for file in files for name in pins((LOCK / f"{file}.txt").read_text()))
        width = max(map(len, names))
        text += f"\n{title}\n\n" + "".join(f"  {name:<{width}}  {found[name]}\n" for name in names)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.parse_args()
    (ROOT / "NOTICE").write_text(notice())
    print(f"NOTICE: {len(licences())} packages")


if __name__ == "__main__":
    main_guard(main)
