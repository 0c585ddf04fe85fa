"""wandb's copy of a run's record, which is optional: what fails there is said, and training goes on.

RUN/wandb_id holds the id with which a resumed run goes on in wandb; RUN/wandb/ is wandb's own folder.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from megatv.regular_file import read_bytes, write_file
from megatv.untrusted import printable

SECONDS = 60
"""Longest wait for wandb's server at the start, and for the last records at the end."""
ID = re.compile(r"[0-9a-zA-Z_-]{1,64}")


class WandbRecord:
    """Records of a run in wandb: online with a key, else offline in RUN/wandb.

    Where wandb cannot be started online, such as without network, the record is kept offline; where it cannot
    be started at all, or fails later, there is none from there on. Steps that are done again after a restart
    are in wandb already, which ignores them.
    """

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        self._run: Any = None
        self._run = self._try("start", lambda: _start(run_dir, config))
        if self._run is None:
            self._run = self._try("start offline", lambda: _start(run_dir, config, mode="offline"))

    def write(self, record: Mapping[str, Any]) -> None:
        """Add one record: `step` and plain numbers."""
        if self._run is not None:
            values = {key: value for key, value in record.items() if key != "step"}
            self._try("take a record", lambda: self._run.log(values, step=record["step"]))

    def close(self) -> None:
        """Hand over the last records."""
        if self._run is not None:
            self._try("end", lambda: self._run.finish())

    def _try(self, what: str, act: Callable[[], Any]) -> Any:
        """What `act` gives; None, and no more of wandb, when it fails, however that looks."""
        try:
            return act()
        except Exception as error:
            reason = printable(" ".join(str(error).split()), keep="")[:200]
            tqdm.write(f"wandb cannot {what} ({type(error).__name__}: {reason}); training goes on without it")
            self._run = None
            return None


def _start(run_dir: Path, config: Mapping[str, Any], mode: Literal["offline"] | None = None) -> Any:
    """wandb's run of this directory, begun or gone on with. mode None: as WANDB_MODE says, or by the key."""
    import wandb

    if mode is None and "WANDB_MODE" not in os.environ and not wandb.login(prompt=False):
        mode = "offline"
    return wandb.init(
        project="megatv",
        name=run_dir.resolve().name,
        id=_id(run_dir / "wandb_id"),
        resume="allow",
        mode=mode,
        dir=str(run_dir),
        config=dict(config),
        settings=wandb.Settings(init_timeout=SECONDS, finish_timeout=SECONDS),
    )


def _id(file: Path) -> str:
    """The id of the run in wandb; a new one where the file holds none."""
    try:
        found = read_bytes(file, 1 << 10).decode().strip()
    except (OSError, ValueError):
        found = ""
    if not ID.fullmatch(found):
        if file.exists():
            tqdm.write(f"{file}: holds no id of wandb; the run goes on as a new one there")
        found = secrets.token_hex(4)
        write_file(file, found)
    return found
