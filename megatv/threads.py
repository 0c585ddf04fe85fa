"""How the CPU threads of one operation wait for each other."""

from __future__ import annotations

from collections.abc import MutableMapping

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Variables by which a user says how OpenMP's threads wait: the standard's, GNU's and LLVM's."""


SPIN_ROUNDS = 2000
"""Rounds that a waiting thread spins before it sleeps. On two idle cores more rounds make the toy world's
codec learn no faster, and none makes it 10 % slower. Beside four other busy processes 2,000 rounds take a
third more CPU time than none, 10,000 twice as much (`tools/train_codec.py`, AMD EPYC, 2026-12-01)."""


def spin_briefly(env: MutableMapping[str, str]) -> None:
    """Let OpenMP's threads soon sleep while they wait, unless `env` has one of WAITING.

    torch shares every larger operation among its threads, and they wait for the slowest. GNU's OpenMP spins
    meanwhile, up to 300,000 rounds (libgomp manual, GOMP_SPINCOUNT). A small model has thousands of short
    operations a second; where other processes use the cores, nearly all time then goes into spinning.
    OpenMP reads the variable when torch is imported, so `megatv/__init__.py` calls this, and commands import
    megatv before torch. The number of threads stays what it was, and with it every result.
    """
    if not any(name in env for name in WAITING):
        env["GOMP_SPINCOUNT"] = str(SPIN_ROUNDS)
