"""What a config may not say: ranges of single values, then how sections must agree.

Refused at start-up, with the sentence that fixes it; nothing is adjusted silently.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatv.config import Config

AT_LEAST_ONE = (
    "run.steps video.width video.height video.groups sequence.context_tokens sequence.examples_per_row "
    "model.layers model.width model.ffn model.heads model.kv_heads model.vocab model.rope_theta "
    "batch.examples parallel.tp parallel.pp parallel.cp checkpoint.every checkpoint.keep "
    "log.every log.val_rows profile.start sample.steps data.workers data.cache_bytes "
    "health.spike_window health.max_skipped_in_a_row"
)
AT_LEAST_ZERO = (
    "run.seed objective.text_weight objective.video_weight optim.min_lr optim.warmup_steps "
    "optim.weight_decay optim.text_lr_scale log.val_every log.preview_every sample.temperature sample.cfg "
    "profile.steps health.watchdog_seconds health.spike_factor data.max_bad_samples data.shuffle_shards"
)
AT_MOST: dict[str, float] = {
    **dict.fromkeys(("video.width", "video.height"), 1 << 14),
    **dict.fromkeys(("video.groups", "sequence.examples_per_row"), 1 << 12),
    "sequence.context_tokens": 1 << 24,
    "model.layers": 1000,
    "model.width": 1 << 17,
    "model.ffn": 1 << 20,
    "model.vocab": 1 << 22,
    **dict.fromkeys(("model.heads", "model.kv_heads"), 1 << 12),
    **dict.fromkeys(("parallel.tp", "parallel.pp", "parallel.cp"), 1 << 12),
    **dict.fromkeys(("run.steps", "checkpoint.every", "checkpoint.keep", "batch.examples"), 10**9),
    **dict.fromkeys(("log.every", "log.val_every", "log.val_rows", "log.preview_every"), 10**9),
    **dict.fromkeys(("optim.warmup_steps", "profile.start", "profile.steps"), 10**9),
    **dict.fromkeys(("data.max_bad_samples", "data.shuffle_shards"), 10**9),
    "run.seed": (1 << 63) - 1,
    "data.workers": 1024,
    "data.cache_bytes": 1 << 60,
    "health.watchdog_seconds": 30 * 24 * 3600,
    **dict.fromkeys(("health.spike_window", "health.max_skipped_in_a_row"), 10**6),
    "health.spike_factor": 1e9,
    "sample.steps": 10_000,
    **dict.fromkeys(("sample.temperature", "sample.cfg"), 1000.0),
    **dict.fromkeys(("objective.text_weight", "objective.video_weight"), 1e6),
    **dict.fromkeys(("optim.lr", "optim.min_lr", "optim.eps", "optim.weight_decay"), 1000.0),
    "optim.text_lr_scale": 1000.0,
    "optim.clip": 1e12,
    "model.norm_eps": 1.0,
    "model.rope_theta": 1e12,
    "sequence.timestep_std": 100.0,
}
"""Far above what anybody trains. A checkpoint's config must not take its reader's memory before its weights
are compared with it; products of these sizes still count as 64-bit numbers."""
MOST_ROPE = 1e6
"""Of the factors of `model.rope_scaling`."""
ABOVE_ZERO = "model.norm_eps sequence.timestep_std optim.lr optim.eps optim.clip"
PROBABILITIES = "sequence.text_dropout sequence.clean_flip sample.top_p"


def check(config: Config) -> None:
    """Raise ValueError with the first thing that is impossible: the key, its value and the remedy."""
    for rule in (_ranges, _video, _model, _context, _parallel, _files, _optim, _sample):
        for ok, sentence in rule(config):
            if not ok:
                raise ValueError(sentence)


Findings = Iterator[tuple[bool, str]]


def _get(config: Config, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def _ranges(config: Config) -> Findings:
    for key in AT_LEAST_ONE.split():
        yield _get(config, key) >= 1, f"{key} is {_get(config, key)}: it must be at least 1"
    for key, most in AT_MOST.items():
        yield _get(config, key) <= most, f"{key} is {_get(config, key)}: it must be at most {most}"
    for key in AT_LEAST_ZERO.split():
        yield _get(config, key) >= 0, f"{key} is {_get(config, key)}: it must not be negative"
    mean = config.sequence.timestep_mean
    yield abs(mean) <= 100, f"sequence.timestep_mean is {mean}: it must be from -100 to 100"
    for key in ABOVE_ZERO.split():
        yield _get(config, key) > 0, f"{key} is {_get(config, key)}: it must be above 0"
    for key in PROBABILITIES.split():
        yield 0 <= _get(config, key) <= 1, f"{key} is {_get(config, key)}: a probability lies between 0 and 1"


def _video(config: Config) -> Findings:
    step = config.pixels_per_token
    for key in ("width", "height"):
        size = getattr(config.video, key)
        nearest = max(step, round(size / step) * step)
        yield size % step == 0, f"video.{key} is {size}: it must be a multiple of {step}, such as {nearest}"


def _model(config: Config) -> Findings:
    model = config.model
    if model.head_size is None:
        yield (
            model.width % model.heads == 0 and model.head_dim % 2 == 0,
            f"model.width {model.width} over model.heads {model.heads} must give an even head size, or "
            "model.head_size say another",
        )
    else:
        yield (
            2 <= model.head_size <= 1 << 12 and model.head_size % 2 == 0,
            f"model.head_size is {model.head_size}: it must be even and from 2 to {1 << 12}, or null",
        )
    yield (
        model.heads % model.kv_heads == 0,
        f"model.heads {model.heads} must be a multiple of model.kv_heads {model.kv_heads}",
    )
    yield (
        1 <= min(model.unet_channels) <= max(model.unet_channels) <= 1 << 16,
        f"model.unet_channels is {list(model.unet_channels)}: both must be at least 1 and at most {1 << 16}",
    )
    if rule := model.rope_scaling:
        yield (
            rule.factor >= 1
            and 0 < rule.low_freq_factor < rule.high_freq_factor
            and rule.high_freq_factor <= MOST_ROPE
            and rule.factor <= MOST_ROPE
            and 1 <= rule.original_context <= 1 << 24,
            f"model.rope_scaling needs 1 <= factor <= {MOST_ROPE:g}, 0 < low_freq_factor < "
            f"high_freq_factor <= {MOST_ROPE:g} and 1 <= original_context <= {1 << 24}",
        )


def _context(config: Config) -> Findings:
    seq, examples = config.sequence, config.batch.examples
    yield (
        examples % seq.examples_per_row == 0,
        f"batch.examples {examples} must be a multiple of sequence.examples_per_row {seq.examples_per_row}",
    )
    chunk_rows = 2 * config.chunks_per_row * config.tokens_per_chunk
    markers = 2 * config.latents + 2
    yield (
        config.text_rows_per_example >= markers,
        f"sequence.context_tokens {seq.context_tokens} is too small: the two copies of "
        f"{config.chunks_per_row} chunks x {config.tokens_per_chunk} tokens take {chunk_rows} and the "
        f"markers {markers} for each of {seq.examples_per_row} examples; make it at least "
        f"{chunk_rows + markers * seq.examples_per_row} plus room for the captions",
    )


def _parallel(config: Config) -> Findings:
    model, par = config.model, config.parallel
    for key in ("heads", "kv_heads", "ffn", "vocab"):
        size = getattr(model, key)
        yield size % par.tp == 0, f"model.{key} {size} must be a multiple of parallel.tp {par.tp}"
    for key in ("dp", "microbatches"):
        demanded = getattr(par, key)
        yield (
            demanded is None or 1 <= demanded <= 1 << 20,
            f"parallel.{key} is {demanded}: it must be from 1 to {1 << 20}, or null for what the world gives",
        )
    yield (
        model.heads % (par.tp * par.cp) == 0,
        f"model.heads {model.heads} must be a multiple of parallel.tp {par.tp} x parallel.cp {par.cp}, as "
        "every rank attends for a share of the heads: lower parallel.cp",
    )
    yield (
        par.cp <= config.chunks_per_row,
        f"parallel.cp {par.cp} ranks cannot share the {config.chunks_per_row} chunks of a row: lower it",
    )
    if par.sequence_parallel:
        yield (
            par.tp > 1,
            "parallel.sequence_parallel splits rows over parallel.tp, which is 1: set it to false",
        )
        for name, rows in (("text rows", config.text_rows), ("rows of a chunk", 2 * config.tokens_per_chunk)):
            yield (
                rows % par.tp == 0,
                f"parallel.sequence_parallel needs {name} that parallel.tp {par.tp} divides, there are "
                f"{rows}: change sequence.context_tokens or set it to false",
            )
    yield (
        model.layers >= par.pp,
        f"parallel.pp {par.pp} stages need at least as many layers, model.layers is {model.layers}",
    )
    yield (
        par.pp == 1 or par.zero <= 1,
        f"parallel.zero {par.zero} does not go with parallel.pp {par.pp}: DeepSpeed's pipeline shards "
        "optimizer states only; set parallel.zero to 0 or 1",
    )
    yield (
        config.precision == "fp32" or par.zero >= 1,
        "parallel.zero 0 keeps no fp32 masters for precision bf16: set parallel.zero to 1 (or more)",
    )
    yield (
        config.log.preview_every == 0 or (par.tp == par.pp == 1 and par.zero <= 2),
        "previews need the whole model on one process: set log.preview_every to 0, or parallel.tp and "
        "parallel.pp to 1 and parallel.zero to 2 or less",
    )


def _files(config: Config) -> Findings:
    yield (
        config.data.crop == "none"
        or (config.sequence.mode, config.sequence.think2v) != ("think2v", "frame_actions"),
        f"data.crop {config.data.crop} moves words between chunks, and sequence.think2v frame_actions needs "
        "a line for every frame: set data.crop to none",
    )
    texts = {
        "run.dir": config.run.dir,
        "data.train": config.data.train,
        "data.cache_dir": config.data.cache_dir,
        "tokenizer.path": config.tokenizer.path,
    }
    for key, text in texts.items():
        yield bool(text), f"{key} is empty: give a path"
    yield (
        config.codec.kind == "dct" or bool(config.codec.path),
        f"codec.kind {config.codec.kind} needs codec.path: the local file or folder of its weights",
    )
    yield (
        config.log.val_every == 0 or config.data.val is not None,
        f"log.val_every {config.log.val_every} needs data.val: name held-out shards or set it to 0",
    )


def _optim(config: Config) -> Findings:
    opt, weights = config.optim, config.objective
    yield opt.lr >= opt.min_lr, f"optim.min_lr {opt.min_lr} must not be above optim.lr {opt.lr}"
    yield (
        all(0 <= beta < 1 for beta in opt.betas),
        f"optim.betas is {list(opt.betas)}: both must be at least 0 and below 1",
    )
    yield (
        opt.ema is None or 0 < opt.ema < 1,
        f"optim.ema is {opt.ema}: a decay lies between 0 and 1; null keeps no average",
    )
    yield (
        opt.ema is None or config.parallel.zero < 3,
        f"optim.ema {opt.ema} needs parallel.zero <= 2: ZeRO-3 leaves no whole weights to average",
    )
    yield (
        weights.text_weight + weights.video_weight > 0,
        "objective.text_weight and objective.video_weight are both 0: there is nothing to learn",
    )


def _sample(config: Config) -> Findings:
    seq = config.sequence
    yield (
        config.sample.grammar == "none" or (seq.mode, seq.think2v) != ("think2v", "detailed_caption"),
        f"sample.grammar {config.sample.grammar} is for action lines, and sequence.think2v is "
        "detailed_caption: set the grammar to none",
    )
