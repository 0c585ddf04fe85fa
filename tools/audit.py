"""Look for known vulnerabilities in launch/lock/, and write what .venv consists of (CycloneDX).

    python tools/audit.py [--sbom build/sbom.cdx.json]

The programs (pip-audit, cyclonedx-bom) come as launch/lock/audit.txt names them, into an environment of their
own, .venv/audit. Advisories are asked of osv.dev. Where it does not answer, one line says so and nothing is
audited. Exit code 1 when there is a vulnerability that launch/lock/ignored.toml does not name.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path

from lock import LOCK, ROOT
from megatv.log import main_guard
from megatv.untrusted import parse_json

OSV = "https://api.osv.dev/v1/query"
KNOWN = {"package": {"ecosystem": "PyPI", "name": "jinja2"}, "version": "2.4.1"}
"""A release with known vulnerabilities: what reports none for it is no service of advisories."""
# Each list has one version of a package: what shares .venv, and the programs that do not.
AUDITED = (("build", "source", "torch", "core", "cuda", "gpu", "data", "dev"), ("audit", "renew"))


def ignored(text: str, today: datetime.date) -> list[str]:
    """Ids of the advisories that launch/lock/ignored.toml names today.

    Raises ValueError for a table without a day and a reason, and for one whose day is over.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"launch/lock/ignored.toml: {error}") from None
    for name, table in tables.items():
        if not isinstance(table, dict) or set(table) != {"until", "reason"}:
            raise ValueError(f"launch/lock/ignored.toml: [{name}] must have `until` and `reason` alone")
        until, reason = table["until"], table["reason"]
        if type(until) is not datetime.date or not isinstance(reason, str) or not reason.strip():
            raise ValueError(f"launch/lock/ignored.toml: [{name}] needs a day, `until`, and words, `reason`")
        if until < today:
            raise ValueError(
                f"launch/lock/ignored.toml: [{name}] was ignored until {until}: upgrade what it is about, or "
                "say anew why not and until when"
            )
    return list(tables)


def answers(service: str) -> str | None:
    """None when the service reports vulnerabilities of KNOWN, else why it does not."""
    request = urllib.request.Request(
        service, json.dumps(KNOWN).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            known = parse_json(reply.read(1 << 20))
    except (OSError, ValueError) as error:
        return str(error)
    return (
        None
        if isinstance(known, dict) and known.get("vulns")
        else "it knows no vulnerability of jinja2 2.4.1"
    )


def programs() -> Path:
    """The folder of pip-audit and cyclonedx-py, installed if need be."""
    folder, lines = ROOT / ".venv" / "audit", LOCK / "audit.txt"
    done = folder / "lock.txt"  # written last
    if not done.exists() or done.read_bytes() != lines.read_bytes():
        run(sys.executable, "-m", "venv", "--clear", "--without-pip", folder)
        pip = [sys.executable, "-m", "pip", "--python", str(folder), "install", "-qq"]
        run(*pip, "--no-deps", "--require-hashes", "--only-binary", ":all:", "-r", lines)
        done.write_bytes(lines.read_bytes())
    return folder / "bin"


def run(*command: str | Path) -> None:
    """Run a program from the repository's root. Raises ValueError with its name when it fails."""
    if code := subprocess.run(command, cwd=ROOT, check=False).returncode:
        raise ValueError(f"{Path(command[0]).name} failed with exit code {code}; its output is above")


def audit(folder: Path, service: str, passed_over: list[str]) -> bool:
    """Whether all of launch/lock/ is free of other vulnerabilities; pip-audit prints those that it finds."""
    options = [
        "--disable-pip",
        "--require-hashes",
        "--progress-spinner",
        "off",
        "-s",
        "osv",
        "--osv-url",
        service,
    ]
    options += [word for name in passed_over for word in ("--ignore-vuln", name)]
    clean = True
    for files in AUDITED:
        lines = [word for file in files for word in ("-r", str(LOCK / f"{file}.txt"))]
        clean &= subprocess.run([folder / "pip-audit", *options, *lines], check=False).returncode == 0
    return clean


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--sbom", type=Path, default=ROOT / "build" / "sbom.cdx.json", help="file to write")
    parser.add_argument("--service", default=OSV, help="where advisories are asked for")
    args = parser.parse_args()
    passed_over = ignored((LOCK / "ignored.toml").read_text(), datetime.date.today())
    folder = programs()
    args.sbom.parent.mkdir(parents=True, exist_ok=True)
    run(
        folder / "cyclonedx-py",
        "environment",
        "--pyproject",
        "pyproject.toml",
        "-o",
        args.sbom,
        sys.executable,
    )
    print(f"{args.sbom}: {len(parse_json(args.sbom.read_text())['components'])} packages")
    if why := answers(args.service):
        print(f"not audited: {args.service} does not answer here ({why})")
        return 0
    return 0 if audit(folder, args.service, passed_over) else 1


if __name__ == "__main__":
    main_guard(main)
