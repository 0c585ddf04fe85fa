"""One YAML is one run: every field of a run, its meaning, its check.

No inheritance, no defaults hidden elsewhere: unknown keys are errors with a suggestion, derived values are
properties, and the resolved config is written beside the run. Sources: TV2TV tables 6 and 7 for the paper's
values; fields that the paper leaves open say so.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from megatv.checks import check
from megatv.choices import Solver
from megatv.schema import Place, build, plain, with_home
from megatv.yaml_tree import dump, read_yaml

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

    dir: Place
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
    path: Place | None = None


@dataclass(frozen=True)
class TokenizerConfig:
    """path: a tiktoken file such as Llama-3's tokenizer.model, or `toy_world` for the shipped small BPE."""

    path: Place


@dataclass(frozen=True)
class DataConfig:
    """Shards (MDS, with latents), training and held out; `val` may be null.

    max_bad_samples  training samples that may be left out because they cannot be read or used, before the
                     run stops and names them; each is replaced by rule and counted in the record
    workers          threads that build a step's rows; any number builds the same ones
    shuffle_shards   0: over the whole epoch; else in shuffled windows of so many shards (`megatv.data.order`)
    crop             examples cut anew in every epoch from longer clips, at random: `megatv.data.crop`
    cache_dir        where shards of `s3://bucket/prefix` are kept, shared by the ranks of a node
    cache_bytes      the most that the shards of one location may take there
    """

    train: Place
    val: Place | None = None
    max_bad_samples: int = 10
    workers: int = 1
    shuffle_shards: int = 0
    crop: Literal["none", "starts", "frames"] = "none"
    cache_dir: Place = "cache/shards"
    cache_bytes: int = 64 << 30


@dataclass(frozen=True)
class SequenceConfig:
    """How an example becomes a sequence (TV2TV sections 2.1, 2.2 and 3.1) and a packed row.

    context_tokens    S, rows of one packed row, both copies of every chunk counted (Max Context Length)
    examples_per_row  examples of full length that one row has room for; short ones share it
    think2v           the plan: a line of actions for every chunk, or every frame, or the detailed caption
    text_dropout      p_txt-drop: a text segment is dropped with it, half of the time with all of its sample's
    clean_flip        p_clean-vid-flip: a clean chunk is replaced by its noisy sample
    timestep_mean, timestep_std   t = sigmoid(n), n ~ N(mean, std^2); the table's 1.96 is the variance 1.4^2
    noisy_pos, chunk_pos   RoPE positions; the paper is silent, see README "Choices"
    first_chunk_loss  whether chunk 0, which is given at sampling time, bears a flow loss
    """

    mode: Literal["tv2tv", "t2v", "think2v"]
    context_tokens: int
    examples_per_row: int = 1
    think2v: Literal["actions", "frame_actions", "detailed_caption"] = "actions"
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

    head_size      width of one head, or null: width / heads
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
    head_size: int | None = None
    norm_eps: float = 1e-5
    rope_theta: float = 500000.0
    rope_scaling: RopeScaling | None = None
    patch: Literal["unet", "linear"] = "unet"
    unet_channels: tuple[int, int] = (512, 1280)
    init_text: Place | None = None
    init_video: Literal["copy", "random"] = "copy"

    @property
    def head_dim(self) -> int:
        """E, width of one head."""
        return self.head_size or self.width // self.heads


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
    """examples: of full length in one optimizer step over all ranks (the paper's batch size)."""

    examples: int


@dataclass(frozen=True)
class ParallelConfig:
    """The process grid: world = pp x dp x cp x tp.

    tp, pp             tensor-parallel siblings; pipeline stages
    cp                 context parallelism: siblings that share the rows of one packed row (Ulysses)
    dp, microbatches   packed rows at once, and one after the other, in a step. They follow from the world
                       and the batch (null); where they are given, another world is refused
    sequence_parallel  tp siblings also share the rows of what their matrices do not split
    activation_checkpointing   what a block keeps for the backward pass: `none` of it is computed again;
                       `selective`: all but the feed-forward's inside; `full`: its input; `offloaded`: that
                       too waits in host memory
    """

    tp: int = 1
    pp: int = 1
    cp: int = 1
    dp: int | None = None
    zero: Literal[0, 1, 2, 3] = 1
    sequence_parallel: bool = False
    microbatches: int | None = None
    activation_checkpointing: Literal["none", "selective", "full", "offloaded"] = "none"


@dataclass(frozen=True)
class CheckpointConfig:
    """every: steps between checkpoints; keep: how many of the newest stay."""

    every: int
    keep: int = 3


@dataclass(frozen=True)
class LogConfig:
    """Steps between step lines, validations and previews (0: never); wandb is offline without a key."""

    every: int = 10
    val_every: int = 0
    val_rows: int = 16
    preview_every: int = 0
    wandb: bool = False


@dataclass(frozen=True)
class ProfileConfig:
    """A trace by torch's profiler of `steps` steps (0: never), the first of them `start` (from 1)."""

    start: int = 10
    steps: int = 0


@dataclass(frozen=True)
class HealthConfig:
    """When a run, or a step of it, must not go on.

    watchdog_seconds           the run is ended when it finishes no step for so long (0: never)
    spike_factor, spike_window a step is skipped when its gradient's norm is above so many times the median
                               of so many steps before (factor 0: never)
    max_skipped_in_a_row       the run is ended after so many skipped steps
    """

    watchdog_seconds: int = 1500
    spike_factor: float = 10.0
    spike_window: int = 128
    max_skipped_in_a_row: int = 20


@dataclass(frozen=True)
class SampleConfig:
    """Sampling defaults (TV2TV tables 6, 7). cfg 1 means no guidance, top_p 1 that any word may be drawn.

    grammar `actions`: a game's lines, see `megatv.sample.grammar`; when_full: see `megatv.sample.speech`
    keep_prompt, keep_first_frame   what a long video's later windows begin with, see `megatv.sample.timeline`
    """

    steps: int = 50
    temperature: float = 0.7
    cfg: float = 1.0
    solver: Solver = "euler"
    top_p: float = 1.0
    grammar: Literal["none", "actions"] = "none"
    when_full: Literal["bof", "end"] = "bof"
    keep_prompt: bool = True
    keep_first_frame: bool = False


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
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    precision: Literal["fp32", "bf16"] = "fp32"
    attention: Literal["auto", "cuda", "fa4", "triton", "flex", "sdpa", "reference"] = "auto"

    @property
    def pixels_per_token(self) -> int:
        """Pixels along one side of a token: the codec's factor times the U-Net's."""
        return SPATIAL_FACTOR * PATCH

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
                f"set batch.examples to a multiple of {dp * self.sequence.examples_per_row}"
            )
        rows = self.rows_per_step // dp
        if self.parallel.microbatches not in (None, rows):
            raise ValueError(
                f"parallel.microbatches is {self.parallel.microbatches}, but {self.rows_per_step} rows over "
                f"{dp} data-parallel ranks are {rows}: change it, batch.examples or the number of processes"
            )
        return rows

    def derived(self) -> dict[str, int]:
        """The sizes that follow from the fields, printed at start."""
        names = "latents tokens_per_chunk chunks_per_row text_rows text_rows_per_example rows_per_step"
        return {name: getattr(self, name) for name in names.split()}

    def __post_init__(self) -> None:
        check(self)


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML file, apply `section.key=value` overrides and check everything.

    Values are in YAML; `~` at the start of a path is the home folder. ValueError with file, key and remedy.
    """
    tree = read_yaml(path, overrides)
    try:
        return with_home(build(Config, tree))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def config_from_dict(tree: Mapping[str, Any]) -> Config:
    """Build a Config from plain data (a YAML tree or a checkpoint's record); ValueError on any fault."""
    return build(Config, tree)


def config_to_dict(config: Any) -> dict[str, Any]:
    """Plain data of a Config (or one section) that `config_from_dict` reads back to an equal one."""
    return plain(config)


def save_config(config: Config, path: str | Path) -> None:
    """Write the resolved config as YAML; `load_config` reads it back to an equal Config."""
    temporary = Path(f"{path}.tmp")
    temporary.write_text(dump(config_to_dict(config)), encoding="utf-8")
    os.replace(temporary, path)
