"""One YAML is one run: every field of a run, its meaning, its check.

No inheritance, no defaults hidden elsewhere: unknown keys are errors with a suggestion, derived values are
properties, and the resolved config is written beside the run. Sources: TV2TV tables 6 and 7 for the paper's
values; fields that the paper leaves open say so.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

LATENT_CHANNELS = 16
SPATIAL_FACTOR = 8
"""Codec geometry 4 x 8 x 8 with 16 channels (Cosmos-Tokenize1-CV4x8x8)."""
TEMPORAL_FACTOR = 4
GROUP_FRAMES = 49
GROUP_LATENTS = 1 + (GROUP_FRAMES - 1) // TEMPORAL_FACTOR
FPS = 16
"""TV2TV section 2.1: 16 frames a second, coded in groups of 49 frames = 13 latents."""
PATCH = 2
"""The U-Net's 2 x 2 patching (TV2TV section 3.2)."""


@dataclass(frozen=True)
class RunConfig:
    """dir: where everything of this run is written; steps: optimizer steps; seed: of all randomness."""

    dir: str
    steps: int
    seed: int = 0


@dataclass(frozen=True)
class VideoConfig:
    """Size of the training videos in pixels and the number of 49-frame groups of one example."""

    width: int
    height: int
    groups: int


@dataclass(frozen=True)
class CodecConfig:
    """kind `dct` needs no weights; `learned`, `cosmos` and `wan` are loaded from the local `path`."""

    kind: Literal["dct", "learned", "cosmos", "wan"]
    path: str | None = None


@dataclass(frozen=True)
class TokenizerConfig:
    """path: a tiktoken file such as Llama-3's tokenizer.model, or `toy_world` for the shipped small BPE."""

    path: str


@dataclass(frozen=True)
class DataConfig:
    """Shard directories (MDS, with latents), training and held out; `val` may be null."""

    train: str
    val: str | None = None


@dataclass(frozen=True)
class SequenceConfig:
    """How an example becomes a sequence (TV2TV sections 2.1, 2.2 and 3.1) and a packed row.

    context_tokens    S, rows of one packed row, both copies of every chunk counted (Max Context Length)
    examples_per_row  examples packed into one row
    text_dropout      p_txt-drop: each segment alone, and the whole sample's text, are dropped with it
    clean_flip        p_clean-vid-flip: a clean chunk is replaced by its noisy sample
    timestep_mean, timestep_std   t = sigmoid(n), n ~ N(mean, std^2); the table's 1.96 is the variance 1.4^2
    noisy_pos, chunk_pos   RoPE positions; the paper is silent, see README "Choices"
    first_chunk_loss  whether chunk 0, which is given at sampling time, bears a flow loss
    """

    mode: Literal["tv2tv", "t2v", "think2v"]
    context_tokens: int
    examples_per_row: int = 1
    think2v: Literal["actions", "detailed_caption"] = "actions"
    text_dropout: float = 0.0
    clean_flip: float = 0.0
    timestep_mean: float = 0.0
    timestep_std: float = 1.4
    noisy_pos: Literal["shared", "sequential"] = "shared"
    chunk_pos: Literal["raster", "single"] = "raster"
    first_chunk_loss: bool = True


@dataclass(frozen=True)
class RopeScaling:
    """Llama-3.1/3.2 rotary scaling rule (llama-models `model.py`, `apply_scaling`)."""

    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


@dataclass(frozen=True)
class ModelConfig:
    """Mixture-of-Transformers of two equal towers (TV2TV tables 6 and 7).

    patch          `unet` (Transfusion's 2 x 2 U-Net) or `linear` (one matrix each way; for small tests)
    unet_channels  width at full and at half latent resolution
    init_text      Hugging Face Llama directory (safetensors) for the text tower, or null: random
    init_video     `copy` the text tower's weights into the video tower, or `random`
    """

    layers: int
    width: int
    ffn: int
    heads: int
    kv_heads: int
    vocab: int
    tied_embeddings: bool
    norm_eps: float = 1e-5
    rope_theta: float = 500000.0
    rope_scaling: RopeScaling | None = None
    patch: Literal["unet", "linear"] = "unet"
    unet_channels: tuple[int, int] = (512, 1280)
    init_text: str | None = None
    init_video: Literal["copy", "random"] = "copy"

    @property
    def head_dim(self) -> int:
        """E, width of one head."""
        return self.width // self.heads


@dataclass(frozen=True)
class ObjectiveConfig:
    """Loss weights (TV2TV eq. 16; the paper gives no values)."""

    text_weight: float = 0.2
    video_weight: float = 1.0


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with linear warm-up and cosine decay to `min_lr` (schedule and lr: TV2TV tables 6, 7).

    text_lr_scale multiplies the learning rate of the text tower; 0 freezes it. ema: decay of the averaged
    weights that are saved beside the trained ones, or null for none.
    """

    lr: float = 3e-4
    min_lr: float = 1.5e-5
    warmup_steps: int = 4000
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0
    text_lr_scale: float = 1.0
    ema: float | None = None


@dataclass(frozen=True)
class BatchConfig:
    """examples: examples of one optimizer step over the whole run (the paper's batch size)."""

    examples: int


@dataclass(frozen=True)
class ParallelConfig:
    """The process grid; data parallelism is what the world size leaves: dp = world / (tp * pp)."""

    tp: int = 1
    pp: int = 1
    zero: Literal[0, 1, 2, 3] = 1
    activation_checkpointing: bool = False


@dataclass(frozen=True)
class CheckpointConfig:
    """every: steps between checkpoints; keep: how many of the newest stay."""

    every: int
    keep: int = 3


@dataclass(frozen=True)
class LogConfig:
    """Steps between step lines, validations and previews (0: never); wandb writes offline unless told so."""

    every: int = 10
    val_every: int = 0
    val_rows: int = 16
    preview_every: int = 0
    wandb: bool = False


@dataclass(frozen=True)
class SampleConfig:
    """Sampling defaults (TV2TV tables 6, 7: Euler, 50 steps, temperature 0.7). cfg 1 means no guidance."""

    steps: int = 50
    temperature: float = 0.7
    cfg: float = 1.0


@dataclass(frozen=True)
class Config:
    """Everything about one run. Build it with `load_config`; it is checked when it is made."""

    run: RunConfig
    video: VideoConfig
    codec: CodecConfig
    tokenizer: TokenizerConfig
    data: DataConfig
    sequence: SequenceConfig
    model: ModelConfig
    batch: BatchConfig
    checkpoint: CheckpointConfig
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    log: LogConfig = field(default_factory=LogConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    precision: Literal["fp32", "bf16"] = "fp32"
    attention: str = "auto"

    @property
    def latent_height(self) -> int:
        """h, latent rows."""
        return self.video.height // SPATIAL_FACTOR

    @property
    def latent_width(self) -> int:
        """w, latent columns."""
        return self.video.width // SPATIAL_FACTOR

    @property
    def tokens_per_chunk(self) -> int:
        """P, tokens of one chunk after the 2 x 2 U-Net."""
        return (self.latent_height // PATCH) * (self.latent_width // PATCH)

    @property
    def latents(self) -> int:
        """N, chunks of one example."""
        return self.video.groups * GROUP_LATENTS

    @property
    def chunks_per_row(self) -> int:
        """M, chunks of one packed row."""
        return self.sequence.examples_per_row * self.latents

    @property
    def text_rows(self) -> int:
        """T, text rows of one packed row: what the chunks' two copies leave of the context."""
        return self.sequence.context_tokens - 2 * self.chunks_per_row * self.tokens_per_chunk

    @property
    def text_rows_per_example(self) -> int:
        """Text tokens (BOS, BOF, EOF and EOS included) that one example may take."""
        return self.text_rows // self.sequence.examples_per_row

    @property
    def rows_per_step(self) -> int:
        """Packed rows (micro-batches over all ranks) of one optimizer step."""
        return self.batch.examples // self.sequence.examples_per_row

    def accumulation(self, dp: int) -> int:
        """Micro-batches of one rank in one optimizer step. Raises ValueError when `dp` does not divide."""
        if self.rows_per_step % dp:
            raise ValueError(
                f"batch.examples {self.batch.examples} = {self.rows_per_step} rows of "
                f"{self.sequence.examples_per_row}, which {dp} data-parallel ranks cannot share equally: "
                f"make rows a multiple of {dp}"
            )
        return self.rows_per_step // dp

    def derived(self) -> dict[str, int]:
        """The sizes that follow from the fields, printed at start."""
        return {
            "latents": self.latents,
            "tokens_per_chunk": self.tokens_per_chunk,
            "chunks_per_row": self.chunks_per_row,
            "text_rows": self.text_rows,
            "text_rows_per_example": self.text_rows_per_example,
            "rows_per_step": self.rows_per_step,
        }

    def __post_init__(self) -> None:
        for ok, message in self._checks():
            if not ok:
                raise ValueError(message)

    def _checks(self) -> Iterable[tuple[bool, str]]:
        model, seq, par, opt = self.model, self.sequence, self.parallel, self.optim
        step = SPATIAL_FACTOR * PATCH
        for key in ("width", "height"):
            size = getattr(self.video, key)
            yield size > 0 and size % step == 0, f"video.{key} is {size}: it must be a multiple of {step}"
        for key, value in {
            "run.steps": self.run.steps,
            "video.groups": self.video.groups,
            "sequence.examples_per_row": seq.examples_per_row,
            "batch.examples": self.batch.examples,
            "checkpoint.every": self.checkpoint.every,
            "checkpoint.keep": self.checkpoint.keep,
            "parallel.tp": par.tp,
            "parallel.pp": par.pp,
            "model.layers": model.layers,
            "model.width": model.width,
            "model.ffn": model.ffn,
            "model.heads": model.heads,
            "model.kv_heads": model.kv_heads,
            "model.vocab": model.vocab,
            "sample.steps": self.sample.steps,
        }.items():
            yield value >= 1, f"{key} is {value}: it must be at least 1"
        for key, value in {"text_dropout": seq.text_dropout, "clean_flip": seq.clean_flip}.items():
            yield 0 <= value <= 1, f"sequence.{key} is {value}: a probability lies between 0 and 1"
        yield seq.timestep_std > 0, f"sequence.timestep_std is {seq.timestep_std}: it must be above 0"
        yield (
            model.width % model.heads == 0 and model.head_dim % 2 == 0,
            f"model.width {model.width} over model.heads {model.heads} must give an even head size",
        )
        yield (
            model.heads % model.kv_heads == 0,
            f"model.heads {model.heads} must be a multiple of model.kv_heads {model.kv_heads}",
        )
        yield (
            self.batch.examples % seq.examples_per_row == 0,
            f"batch.examples {self.batch.examples} must be a multiple of sequence.examples_per_row "
            f"{seq.examples_per_row}",
        )
        need = 2 * self.chunks_per_row * self.tokens_per_chunk
        yield (
            self.text_rows_per_example >= 2 * self.latents + 2,
            f"sequence.context_tokens {seq.context_tokens} is too small: the two copies of "
            f"{self.chunks_per_row} chunks x {self.tokens_per_chunk} tokens take {need}, and every example "
            f"needs at least {2 * self.latents + 2} text rows for its markers",
        )
        for key in ("heads", "kv_heads", "ffn", "vocab"):
            size = getattr(model, key)
            yield size % par.tp == 0, f"model.{key} {size} must be a multiple of parallel.tp {par.tp}"
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
            opt.ema is None or (0 < opt.ema < 1 and par.zero < 3),
            f"optim.ema {opt.ema} must lie between 0 and 1 and needs parallel.zero <= 2",
        )
        yield (
            opt.lr >= opt.min_lr >= 0 and opt.warmup_steps >= 0 and opt.clip > 0,
            "optim needs lr >= min_lr >= 0, warmup_steps >= 0 and clip > 0",
        )
        yield (
            self.codec.kind == "dct" or self.codec.path is not None,
            f"codec.kind {self.codec.kind} needs codec.path: the local file or folder of its weights",
        )


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML file, apply `section.key=value` overrides (values in YAML) and check everything.

    Raises ValueError with the file, the key and the remedy.
    """
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); give --config an existing YAML") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: expected sections such as `run:` and `model:` at the top level")
    for override in overrides:
        _override(tree, override)
    try:
        return config_from_dict(tree)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def config_from_dict(tree: Mapping[str, Any]) -> Config:
    """Build a Config from plain data (a YAML tree or a checkpoint's record); ValueError on any fault."""
    return _build(Config, tree, "")


def config_to_dict(config: Any) -> dict[str, Any]:
    """Plain data of a Config (or one section) that `config_from_dict` reads back to an equal one."""
    return yaml.safe_load(yaml.safe_dump(_plain(asdict(config)), sort_keys=False))


def save_config(config: Config, path: str | Path) -> None:
    """Write the resolved config as YAML; `load_config` reads it back to an equal Config."""
    Path(path).write_text(yaml.safe_dump(config_to_dict(config), sort_keys=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"override '{override}' must look like section.key=value")
    node = tree
    *sections, leaf = key.split(".")
    for section in sections:
        node = node.setdefault(section, {})
        if not isinstance(node, dict):
            raise ValueError(f"override '{override}': '{section}' is a value, not a section")
    node[leaf] = yaml.safe_load(text)


def _build(cls: Any, tree: Any, where: str) -> Any:
    if not isinstance(tree, Mapping):
        raise ValueError(f"{where or 'the config'} must be a section with keys, got {tree!r}")
    known = {f.name: f for f in fields(cls)}
    for key in tree:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1)
            hint = f"; did you mean '{close[0]}'?" if close else f"; known keys: {', '.join(known)}"
            raise ValueError(f"unknown key '{where}{key}'{hint}")
    hints = typing.get_type_hints(cls)
    values = {}
    for name, f in known.items():
        if name in tree:
            values[name] = _convert(hints[name], tree[name], f"{where}{name}")
        elif f.default is MISSING and f.default_factory is MISSING:
            raise ValueError(f"key '{where}{name}' is missing")
    return cls(**values)


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Check one YAML value against its field's type; ints pass as floats, lists as tuples."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        (hint,) = [a for a in args if a is not type(None)]
        return _convert(hint, value, where)
    if origin is Literal:
        if value not in args or isinstance(value, bool) != any(isinstance(a, bool) for a in args):
            raise ValueError(f"{where} is {value!r}: choose one of {', '.join(map(str, args))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or len(value) != len(args):
            raise ValueError(f"{where} must be a list of {len(args)} values, got {value!r}")
        return tuple(_convert(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, value, strict=True)))
    if is_dataclass(hint):
        return _build(hint, value, f"{where}.")
    if hint is float:
        if isinstance(value, str):  # YAML 1.1 reads 3e-4 as a string
            try:
                return float(value)
            except ValueError:
                pass
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise ValueError(f"{where} must be {_WORDS[hint]}, got {value!r}")


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
