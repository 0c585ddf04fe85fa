"""The whole of a data set in one YAML: which videos, every threshold, who writes the words, what is made.

Read with the same strictness as a run's config: an unknown key is an error with a suggestion. The thresholds
of the analysis are in `megatv.curate.settings`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from megatv.config import FPS, GROUP_FRAMES, PATCH, SPATIAL_FACTOR, read_yaml
from megatv.curate.address import check_key_name, check_url
from megatv.curate.settings import (
    ClipSettings,
    EmbedSettings,
    FaceSettings,
    MotionSettings,
    SegmentSettings,
    ShotSettings,
)
from megatv.data.format import MAX_CROPS
from megatv.schema import Place, build, with_home


@dataclass(frozen=True)
class SourceSettings:
    """Which videos are taken (TV2TV section 4.1: "keyword-based and other filtering criteria").

    metadata      JSONL with `video` (a path below the folder) and texts such as `title`; null: all videos
    keywords      at least one of them must be in the texts, as words, in any case; an empty list takes all
    exclude       none of them may be
    min_seconds, min_width_pixels, min_height_pixels, min_frames_per_second   of the file, by its header
    """

    metadata: Place | None = None
    keywords: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    min_seconds: float = 6.0
    min_width_pixels: int = 320
    min_height_pixels: int = 192
    min_frames_per_second: float = 15.0

    def __post_init__(self) -> None:
        for key, most in SOURCE_MOST.items():
            if not 0 <= (value := getattr(self, key)) <= most:
                raise ValueError(f"source.{key} is {value:g}: it must be 0 to {most}")


SOURCE_MOST = {
    "min_seconds": 24 * 3600,
    "min_width_pixels": 1 << 14,
    "min_height_pixels": 1 << 14,
    "min_frames_per_second": 1000,
}
"""The largest thresholds: a higher one would drop every video."""


@dataclass(frozen=True)
class EndpointSettings:
    """A server that speaks OpenAI's chat completions with images, such as `vllm serve`.

    url            up to and with `/v1`: https, or http on this machine; see `megatv.curate.address`
    model          name that the server knows
    api_key_env    environment variable that holds the key, *_API_KEY; null: none is sent
    concurrency    requests at once, over the whole cluster
    timeout_seconds, retries   of one request, as a whole; the busy, broken or slow is asked again, ever later
    temperature, max_tokens    of a reply; one that reaches max_tokens is not used
    response_format            `json_object`, or `text` for a server that does not know it, and for prompts
                               that ask for plain text, such as those of TV2TV's appendix B.2
    image_width_pixels, jpeg_quality   of the frames sent, which keep their aspect ratio
    prompt_price, completion_price     of a million tokens, in any currency, for the cost counters
    """

    url: str
    model: str
    api_key_env: str | None = None
    concurrency: int = 16
    timeout_seconds: float = 120.0
    retries: int = 5
    temperature: float = 0.2
    max_tokens: int = 2048
    response_format: Literal["json_object", "text"] = "json_object"
    image_width_pixels: int = 448
    jpeg_quality: int = 85
    prompt_price: float = 0.0
    completion_price: float = 0.0

    section = "endpoint"
    """Of the recipe, for messages."""

    def __post_init__(self) -> None:
        check_url(self.url, f"{self.section}.url")
        if self.api_key_env is not None:
            check_key_name(self.api_key_env, f"{self.section}.api_key_env")
        for key, most in MOST.items():
            if not 0 < (value := getattr(self, key)) <= most:
                raise ValueError(f"{self.section}.{key} is {value}: it must be above 0 and at most {most}")
        for key, limit in MOST_OR_ZERO.items():
            if not 0 <= (value := getattr(self, key)) <= limit:
                raise ValueError(f"{self.section}.{key} is {value}: it must be 0 to {limit:g}")


MOST = {
    "concurrency": 1024,
    "timeout_seconds": 3600,
    "max_tokens": 1 << 20,
    "image_width_pixels": 4096,
    "jpeg_quality": 100,
}
MOST_OR_ZERO = {"retries": 100, "temperature": 2, "prompt_price": 1e6, "completion_price": 1e6}
"""Each of the retries waits up to a minute."""


class QualityEndpointSettings(EndpointSettings):
    """The same, for scores alone."""

    section = "quality.endpoint"


@dataclass(frozen=True)
class QualitySettings:
    """The model's score of a clip, 1 to 10 (TV2TV appendix B.1); lower than `min_score` is dropped.

    frames     shown from each of start, centre and end: consecutive ones, `frame_seconds` apart
    endpoint   who judges; null: whoever writes the captions. TV2TV (section 4.1) has scores from
               Gemma-3-12B and captions from Qwen3-VL-30B. Another judge asks for no caption again.
    """

    min_score: float = 6.0
    frames: int = 3
    frame_seconds: float = 0.25
    endpoint: QualityEndpointSettings | None = None

    def __post_init__(self) -> None:
        for key, most in {"min_score": 10, "frames": MAX_FRAMES}.items():
            if not 1 <= (value := getattr(self, key)) <= most:
                raise ValueError(f"quality.{key} is {value:g}: it must be 1 to {most}")
        if not 0 < (seconds := self.frame_seconds) <= MAX_FRAME_SECONDS:
            raise ValueError(
                f"quality.frame_seconds is {seconds:g}: it must be above 0 and at most {MAX_FRAME_SECONDS}"
            )


@dataclass(frozen=True)
class CaptionSettings:
    """Who writes the words, and what they are asked for.

    words_from           JSONL that people wrote, as `tools/make_shards.py` reads it; null: the endpoint
    prompts              folder with prompts of your own, see `megatv.curate.prompt_files`; null: megatv's
    frames_per_segment   shown of every segment
    frames_per_clip      shown for the meta-caption
    segment_words        most words of a segment's caption, which may be several sentences (TV2TV appendix
                         B.2: "under 50 words"; its table 1 has up to four sentences)
    meta_words           most words of the meta-caption
    detailed             whether Think2V's long caption is asked for
    detailed_frames      shown for it: TV2TV's is made from "more densely sampled video frames" than the
                         meta-caption (section 4.2.2), and the paper gives no number
    detailed_words       most words of it
    The words are asked for; a text with more than twice as many is refused (`megatv.curate.words`).
    """

    words_from: Place | None = None
    prompts: Place | None = None
    frames_per_segment: int = 4
    frames_per_clip: int = 8
    segment_words: int = 50
    meta_words: int = 30
    detailed: bool = True
    detailed_frames: int = 24
    detailed_words: int = 150

    def __post_init__(self) -> None:
        for key in ("frames_per_segment", "frames_per_clip", "detailed_frames"):
            if not 1 <= (value := getattr(self, key)) <= MAX_FRAMES:
                raise ValueError(f"captions.{key} is {value}: it must be 1 to {MAX_FRAMES}")
        for key in ("segment_words", "meta_words", "detailed_words"):
            if not 1 <= (value := getattr(self, key)) <= MAX_WORDS:
                raise ValueError(f"captions.{key} is {value}: it must be 1 to {MAX_WORDS}")
        if self.detailed and self.detailed_frames < self.frames_per_clip:
            raise ValueError(
                f"captions.detailed_frames {self.detailed_frames} is below captions.frames_per_clip "
                f"{self.frames_per_clip}: the long caption needs more frames; raise it, or set "
                "captions.detailed to false"
            )


MAX_FRAMES, MAX_WORDS = 256, 1000
"""Frames of one request, or of each of a clip's three places; words of one text."""
MAX_FRAME_SECONDS = 60
MAX_SIDE = 1 << 14
"""Pixels, as many as a run's video.width may be."""


@dataclass(frozen=True)
class ExportSettings:
    """Size in pixels of the clips' own files, at 16 frames a second. Shards of that size resample no more."""

    width: int = 320
    height: int = 192

    def __post_init__(self) -> None:
        step = SPATIAL_FACTOR * PATCH
        for key in ("width", "height"):
            size = getattr(self, key)
            if not step <= size <= MAX_SIDE or size % step:
                raise ValueError(
                    f"export.{key} is {size}: it must be a multiple of {step}, {step} to {MAX_SIDE}"
                )


@dataclass(frozen=True)
class ShardSettings:
    """The shards that tools/make_shards.py makes of the exported clips.

    config   YAML of the run that will read them; it says codec, size, length and crop of an example
    store, crops   `latents`, or `clips` as H.264; crops of each clip to store, where `data.crop` is set
    """

    config: Place = "configs/own_videos.yaml"
    device: str = "cpu"
    store: Literal["latents", "clips"] = "latents"
    crops: int | None = None

    def __post_init__(self) -> None:
        if self.crops is not None and not 1 <= self.crops <= MAX_CROPS:
            raise ValueError(f"shards.crops is {self.crops}: it must be null or 1 to {MAX_CROPS}")


@dataclass(frozen=True)
class Recipe:
    """All sections. `shards: null` makes none.

    Without `endpoint`, captions come from captions.words_from, and scores from quality.endpoint or from
    nobody (`quality: null`).
    """

    source: SourceSettings = field(default_factory=SourceSettings)
    shots: ShotSettings = field(default_factory=ShotSettings)
    embed: EmbedSettings = field(default_factory=EmbedSettings)
    clips: ClipSettings = field(default_factory=ClipSettings)
    motion: MotionSettings = field(default_factory=MotionSettings)
    faces: FaceSettings = field(default_factory=FaceSettings)
    endpoint: EndpointSettings | None = None
    quality: QualitySettings | None = field(default_factory=QualitySettings)
    segments: SegmentSettings = field(default_factory=SegmentSettings)
    captions: CaptionSettings = field(default_factory=CaptionSettings)
    export: ExportSettings = field(default_factory=ExportSettings)
    shards: ShardSettings | None = field(default_factory=ShardSettings)

    def __post_init__(self) -> None:
        if self.endpoint is None and self.captions.words_from is None:
            raise ValueError(
                "nobody is there to write captions: give endpoint.url and endpoint.model of an "
                "OpenAI-compatible server, or captions.words_from, a JSONL file of captions that people wrote"
            )
        if self.quality is not None and self.judge is None:
            raise ValueError(
                "quality scores come from a model: give endpoint.url or quality.endpoint.url, or set quality "
                "to null"
            )
        if self.captions.prompts is not None and self.judge is None and self.captions.words_from is not None:
            raise ValueError(
                "captions.prompts is given, and no model is asked: people write the words and there are no "
                "quality scores; leave it out"
            )
        if self.clips.min_seconds * FPS < GROUP_FRAMES:
            raise ValueError(
                f"clips.min_seconds {self.clips.min_seconds:g} is less than a group of {GROUP_FRAMES} frames "
                f"at {FPS} fps: make it at least {GROUP_FRAMES / FPS:.2f}"
            )

    @property
    def judge(self) -> EndpointSettings | None:
        """Who gives quality scores; None when nobody does."""
        return (self.quality.endpoint or self.endpoint) if self.quality else None


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe with `section.key=value` overrides; ValueError with the file, the key and the remedy.

    Paths that workers read become absolute: on another machine they start in another folder.
    """
    tree = read_yaml(path, overrides)
    try:
        recipe = with_home(build(Recipe, tree))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    captions, model = recipe.captions, recipe.embed.model  # prompts are read here, workers get the texts
    if captions.words_from is not None:
        captions = replace(captions, words_from=str(Path(captions.words_from).resolve()))
    recipe = replace(recipe, captions=captions)
    if Path(model).is_dir():
        recipe = replace(recipe, embed=replace(recipe.embed, model=str(Path(model).resolve())))
    return recipe
