"""What one process of a node does with the loader, for `bench_data.py`: each function runs in a fresh one.

Heavy imports are inside the functions, where they are timed or come before the clock starts.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench_data_timing import wait_for_others

if TYPE_CHECKING:
    from megatv.data.loader import Loader

WARM = 4
"""Steps before the clock of `consume` starts: what the loader's thread has built ahead by then is used up."""


def open_loader(config: str, overrides: list[str], path: str, dp_rank: int = 0, dp_size: int = 1) -> Loader:
    """The loader of a run on shards of latents, or of clips, which it decodes and codes."""
    from megatv.config import load_config
    from megatv.data.loader import Loader
    from megatv.data.shards import Shards
    from megatv.data.tokenizer import load_tokenizer
    from megatv.model.codec import clip_encoder, load_codec

    run = load_config(config, overrides)
    shards = Shards(path, lambda: clip_encoder(load_codec(run.codec)))
    return Loader(shards, load_tokenizer(run.tokenizer.path), run, dp_rank=dp_rank, dp_size=dp_size)


def first_batch(config: str, overrides: list[str], path: str) -> dict[str, float]:
    """Seconds of the imports, and from opening the shards to the first batch."""
    begun = time.perf_counter()
    import megatv.data.loader
    import megatv.model.codec  # noqa: F401

    imported = time.perf_counter()
    loader = open_loader(config, overrides, path)
    opened = time.perf_counter()
    batches = loader.iterate(0)
    next(batches)
    ready = time.perf_counter()
    batches.close()  # type: ignore[attr-defined]
    return {"import_s": imported - begun, "open_s": opened - imported, "open_to_batch_s": ready - imported}


def consume(
    config: str, overrides: list[str], path: str, dp_rank: int, dp_size: int, seconds: float, steps: int
) -> dict[str, float]:
    """Take a step's rows, sleep for `seconds` a sequence in place of the GPU, and so on, `steps` times.

    Returns seconds blocked in next(), seconds in all, and CPU seconds of this process.
    """
    batches = open_loader(config, overrides, path, dp_rank, dp_size).iterate(0)
    next(batches)
    wait_for_others()
    waited = spent = begun = 0.0
    for step in range(WARM + steps):
        if step == WARM:
            waited, spent, begun = 0.0, time.process_time(), time.perf_counter()
        asked = time.perf_counter()
        rows = next(batches)
        waited += time.perf_counter() - asked
        time.sleep(seconds * sum(len(row.ids) for row in rows))
    total, cpu = time.perf_counter() - begun, time.process_time() - spent
    batches.close()  # type: ignore[attr-defined]
    return {"waited": waited, "total": total, "cpu": cpu}


def read_rates(path: str, repeats: int) -> dict[str, Any]:
    """Stored samples a second in random order, as the shards hold them: ours, checked by hash, and peers."""
    from bench_data_timing import seconds_of
    from megatv.data.shards import Shards

    import numpy as np

    shards = Shards(path)
    order = np.random.default_rng(0).permutation(len(shards)).tolist()
    found: dict[str, Any] = {
        "ours": len(order) / seconds_of(lambda: [shards.record(i) for i in order], repeats)[0]
    }
    try:
        import tempfile

        tempfile.tempdir = str(Path(path).parent)  # StreamingDataset leaves its locks there
        from streaming.base.dataset import StreamingDataset
        from streaming.base.local import LocalDataset

        local = LocalDataset(path)
        seconds = seconds_of(lambda: [local[i] for i in order], repeats)[0]
        found["streaming LocalDataset"] = len(order) / seconds
        stream = StreamingDataset(local=path, shuffle=True, batch_size=8, num_canonical_nodes=1)
        seconds = seconds_of(lambda: sum(1 for _ in stream), repeats)[0]
        found["streaming StreamingDataset"] = len(order) / seconds
    except Exception as error:  # a peer that cannot run must not hide the others
        found["streaming"] = f"{type(error).__name__}: {error}"
    return found
