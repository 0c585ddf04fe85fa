"""Which latents a checkpoint's weights are for: those of one codec, normalised with one set of statistics.

Neither shows in the tensors' shapes, and with others every picture is quietly wrong. So both stand in the
meta record and are compared where the weights are used again. A record without them is accepted: that of a
converted Llama, which saw no latents yet, or of an older version.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatv.config import CodecConfig
from megatv.data.format import codec_fingerprint
from megatv.data.shards import Shards
from megatv.data.stats import LatentStats


def origin(shards: Shards, codec: CodecConfig) -> dict[str, Any]:
    """The meta record's `codec_fingerprint` and `latent_stats` for a run on `shards`."""
    return {
        "codec_fingerprint": shards.info.codec_fingerprint or codec_fingerprint(codec),
        "latent_stats": shards.stats.to_dict(),
    }


def require_codec(meta: dict[str, Any], codec: CodecConfig, checkpoint: str | Path) -> None:
    """Refuse (ValueError) to make pictures with other codec weights than the model learned from."""
    trained, here = meta.get("codec_fingerprint"), codec_fingerprint(codec)
    if trained and here and trained != here:
        raise ValueError(
            f"{checkpoint}: was trained with other codec weights than those in {codec.path} now (fingerprint "
            f"{trained}, here {here}): put the old ones back"
        )


def require_origin(meta: dict[str, Any], now: dict[str, Any], shards: str, checkpoint: Path) -> None:
    """Refuse (ValueError) to train on from `checkpoint` with latents of another `origin` (`now`)."""
    trained, here = (record.get("codec_fingerprint") for record in (meta, now))
    if trained and here and trained != here:
        raise ValueError(
            f"{checkpoint}: was trained on latents of other codec weights than {shards} holds (fingerprint "
            f"{trained}, here {here}): put the old codec and shards back, or start another run in a new "
            "run.dir"
        )
    if meta.get("latent_stats") is None:
        return
    before, after = (LatentStats.from_dict(record["latent_stats"]) for record in (meta, now))
    if before.fingerprint() != after.fingerprint():
        raise ValueError(
            f"{checkpoint}: was trained with other latent statistics than {shards} holds now: put the run's "
            f"own back (tools/shards.py stats {shards} --like {checkpoint}), or start another run in a new "
            "run.dir"
        )
