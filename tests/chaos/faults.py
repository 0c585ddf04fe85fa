"""Faults put into the real trainer, each a sentence: `FAULTS="fail_at(rank=1, step=7)" python faults.py ...`.

Started by a launcher in place of launch/train.py, with the same arguments. A fault changes a function of the
trainer in this process alone, before training begins. Steps count from 1, as in the step line.
"""

from __future__ import annotations

import errno
import os
import runpy
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from megatv.parallel.environment import prepare

prepare()  # before DeepSpeed is imported

import torch  # noqa: E402

from megatv import engine, train  # noqa: E402
from megatv.checkpoint import store  # noqa: E402
from megatv.parallel import meeting  # noqa: E402
from megatv.saver import Saver  # noqa: E402
from megatv.watchdog import Watchdog  # noqa: E402

TRAIN = str(Path(__file__).parents[2] / "launch/train.py")


class Now:
    """Where this process is."""

    step = 0


def before(owner: Any, name: str, act: Callable[..., Any]) -> None:
    """Let `owner.name` do `act` with its arguments first."""
    whole = getattr(owner, name)

    def both(*arguments: Any, **options: Any) -> Any:
        act(*arguments, **options)
        return whole(*arguments, **options)

    setattr(owner, name, both)


def me(rank: int) -> bool:
    return int(os.environ["RANK"]) == rank


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at(rank: int, step: int, act: Callable[[], Any]) -> Callable[..., Any]:
    """`act`, but on this rank and in this step only."""
    return lambda *_, **__: act() if me(rank) and Now.step == step else None


def fail_at(rank: int, step: int) -> None:
    """kill -9 in the middle of a step: gradients are there, weights are not changed, the others wait."""
    before(engine.Engine, "_agreed_norm", at(rank, step, die))


def fail_in_copy(rank: int, step: int) -> None:
    """kill -9 while the state is copied for the checkpoint of `step`."""
    before(Saver, "_copy", lambda saver, kind: die() if me(rank) and saver._step == step else None)


def fail_in_write(rank: int, step: int) -> None:
    """kill -9 in the writer's thread, with half a file of the checkpoint of `step` on the disk."""

    def half(path: Path, *_: object) -> None:
        if me(rank) and f"step_{step:08d}" in str(path):
            path.write_bytes(b"half a file")
            die()

    before(store, "write_tensors", half)


def fail_before_rename(step: int) -> None:
    """kill -9 with all of the checkpoint written, but not under its name."""
    before(Path, "rename", lambda path, new: die() if f"step_{step:08d}" in str(new) else None)


def fail_after_rename(step: int) -> None:
    """kill -9 when the checkpoint of `step` has its name and nothing came after."""
    before(store, "prune", lambda folder, _: die() if store.checkpoint_dir(folder, step).exists() else None)


def fail_in_prune(step: int) -> None:
    """kill -9 with half of the oldest checkpoint deleted, after the save of `step`."""

    def half(folder: Path, _: int) -> None:
        if store.checkpoint_dir(folder, step).exists():
            next(store.steps(folder)[0].glob("exp_avg.*")).unlink()
            die()

    before(store, "prune", half)


def disk_full_in_write(rank: int, step: int) -> None:
    """What one rank writes of the checkpoint of `step` finds no space."""

    def full(path: Path, *_: object) -> None:
        if me(rank) and f"step_{step:08d}" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    before(store, "write_tensors", full)


def hang_at(rank: int, step: int) -> None:
    """The rank stops working in the middle of a step, for an hour."""
    before(engine.Engine, "_agreed_norm", at(rank, step, lambda: time.sleep(3600)))


def signal_at(step: int, name: str, whole_group: bool = False) -> None:
    """While `step` is done, every rank gets the signal, or every process of the job, launchers too."""

    def send() -> None:
        if not whole_group:
            os.kill(os.getpid(), signal.Signals[name])
        elif me(0):
            os.killpg(0, signal.Signals[name])

    before(engine.Engine, "step", lambda *_: send() if Now.step == step else None)


def kill_launcher_at(step: int, up: int) -> None:
    """kill -9 of the process `up` generations above the ranks, while they do `step`."""

    def kill() -> None:
        if me(0):
            pid = os.getpid()
            for _ in range(up):
                pid = int(Path(f"/proc/{pid}/status").read_text().partition("PPid:")[2].split()[0])
            os.kill(pid, signal.SIGKILL)
        time.sleep(2)  # the step ends when that has been noticed

    before(engine.Engine, "step", lambda *_: kill() if Now.step == step else None)


def bad_loss(rank: int, step: int, value: str) -> None:
    """The text loss of one rank gets `value` (nan, inf) added: with inf, its gradient stays finite."""
    whole = engine.pretrain_loss

    def bad(*arguments: Any) -> Any:
        loss = whole(*arguments)
        if me(rank) and Now.step == step:
            text_sum = loss.text_sum * float("nan") if value == "nan" else loss.text_sum + float(value)
            loss = type(loss)(**{**vars(loss), "text_sum": text_sum})
        return loss

    engine.pretrain_loss = bad


def bad_gradient(rank: int, step: int, factor: float) -> None:
    """The gradient of one tensor on one rank is multiplied by `factor`, which may be inf."""
    whole = engine.Engine.__init__

    def watched(self: engine.Engine, *arguments: Any, **options: Any) -> None:
        whole(self, *arguments, **options)
        weight = next(p for name, p in self.parameters.items() if ".text.wq" in name)
        weight.register_hook(lambda g: g * factor if me(rank) and Now.step == step else None)

    engine.Engine.__init__ = watched  # type: ignore[method-assign]


def wait_at_start(seconds: float) -> None:
    """How long processes wait for one that does not come."""
    meeting.WAIT = timedelta(seconds=seconds)


def believes(rank: int, world: int) -> None:
    """One rank was told another size of the world."""
    if me(rank):
        os.environ["WORLD_SIZE"] = str(world)


def main() -> None:
    """Put in what FAULTS says and train."""
    torch.set_num_threads(1)
    train.plot_losses = lambda folder: folder / "losses.png"  # which takes as long as all the steps
    before(Watchdog, "tick", lambda _, done: setattr(Now, "step", done + 1))
    exec(os.environ.get("FAULTS", ""))
    runpy.run_path(TRAIN, run_name="__main__")


if __name__ == "__main__":
    main()
