"""Weights in and out: Hugging Face Llama <-> text tower, and the whole model as plain safetensors.

Everything is checked from the files' headers before the first byte is written; tensors then stream one by one
into a temporary sibling of the output, which is renamed when it is whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import megatv
from megatv.checkpoint import store
from megatv.checkpoint.load import choose_weights, find_checkpoint
from megatv.choices import WeightDtype
from megatv.config import Config, config_to_dict
from megatv.log import progress
from megatv.model.cost import meta_model
from megatv.model.init import initial_weight
from megatv.model.llama import LlamaDirectory, llama_names
from megatv.model.llama_config import llama_config
from megatv.schema import short
from megatv.weights import is_finite

Weights = Literal["auto", "ema", "model"]
Record = dict[str, int | str]

DTYPES: dict[WeightDtype, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
INDEX = "model.safetensors.index.json"
LIKE = {
    *("max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "torch_dtype", "dtype"),
    *("head_dim", "attention_bias", "mlp_bias", "attention_dropout", "initializer_range", "pretraining_tp"),
    *("use_cache", "transformers_version"),
}
"""Fields of another Llama's config.json that are passed on; others may name code to run (`auto_map`)."""


def from_llama(llama: Path, config: Config, out: Path) -> None:
    """Write a checkpoint at step 0 whose text tower is the Llama in `llama`, bit for bit.

    The video tower is a copy of it or random (`model.init_video`), the rest as `megatv.model.init` draws it.
    Unlike training from `model.init_text`, the rows of BOF and EOF stay Llama's.
    Raises ValueError when `llama` is incomplete, no Llama, or not the model of the config.
    """
    with directory(out) as temporary:
        shapes = model_shapes(config)
        source = LlamaDirectory(llama, config.model)
        for name in llama_names(config.model):
            if source.shape(name) != shapes[name]:
                raise ValueError(
                    f"{llama}: {source.name(name)} is {list(source.shape(name))}, its config.json needs "
                    f"{list(shapes[name])}; the files do not belong together"
                )

        def weight(name: str) -> Tensor:
            if name in source:
                return source.tensor(name).float()
            return initial_weight(name, shapes[name], config, source)

        meta = {
            "step": 0,
            "updates": 0,
            "skipped": 0,
            "config": config_to_dict(config),
            "latent_stats": None,
            "tokenizer": {"path": config.tokenizer.path, "vocab_size": config.model.vocab},
            "megatv": megatv.__version__,
        }
        weights = map(weight, progress(shapes, total=len(shapes), desc="convert"))
        file = store.part_name("model", 0, 1)
        store.commit(temporary, out, meta, {file: store.write_tensors(temporary / file, shapes, weights)})


def to_llama(
    checkpoint: Path, out: Path, *, weights: Weights, like: Path | None, dtype: str | None, part_bytes: int
) -> None:
    """Write the text tower of a checkpoint as a Hugging Face Llama directory.

    like   a Llama directory whose config.json gives what a run does not know: token ids, longest context
    dtype  float32, bfloat16 or float16; None: as `like` says, else float32
    Raises ValueError when the checkpoint is damaged or `like` is another model.
    """
    with directory(out) as temporary:
        path, meta, config = find_checkpoint(checkpoint)
        model = config.model
        fields: dict[str, Any] = {
            "max_position_embeddings": 131072,
            "bos_token_id": None,
            "eos_token_id": None,
        }
        if like is not None:
            fields = {key: value for key, value in LlamaDirectory(like, model).fields.items() if key in LIKE}
        target = dtype or fields.get("torch_dtype") or fields.get("dtype") or "float32"
        fields["dtype" if "dtype" in fields else "torch_dtype"] = target
        fields |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"}
        fields |= llama_config(model)
        tensors = store.Tensors(path, choose_weights(meta, weights))
        tensors.require(model_shapes(config))
        ours = {theirs: name for name, theirs in llama_names(model).items()}
        shapes = {theirs: tensors.shape(name) for theirs, name in ours.items()}
        write_parts(temporary, shapes, lambda theirs: tensors[ours[theirs]], target, part_bytes)
        (temporary / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
        temporary.rename(out)


def export(checkpoint: Path, out: Path, *, weights: Weights, dtype: str, part_bytes: int) -> None:
    """Write the whole model as safetensors parts with index, config.json and meta.json.

    The result is a checkpoint without optimizer state: the sampler reads it, training does not go on from it.
    """
    with directory(out) as temporary:
        path, meta, config = find_checkpoint(checkpoint)
        tensors = store.Tensors(path, choose_weights(meta, weights))
        shapes = model_shapes(config)
        tensors.require(shapes)
        files = write_parts(temporary, shapes, tensors.__getitem__, dtype, part_bytes)
        (temporary / "config.json").write_text(json.dumps(meta["config"], indent=2) + "\n")
        kept = {key: value for key, value in meta.items() if key not in ("format", "files")}
        store.commit(temporary, out, kept, files)


def average(checkpoints: Sequence[Path], out: Path, *, weights: Literal["ema", "model"]) -> None:
    """Write the mean of several checkpoints' weights as a checkpoint at step 0, in float32.

    As from `from_llama`: it can be sampled, exported, and trained on from (`--resume OUT` in a new run.dir;
    the moments, the schedule and the data start anew, since none of theirs fits the mean).
    Raises ValueError when one is damaged or they are not of one model on one kind of latents.
    """
    if len(checkpoints) < 2:
        raise ValueError("one checkpoint has no mean with others: give two or more")
    with directory(out) as temporary:
        found = [find_checkpoint(path) for path in checkpoints]
        first, meta, config = found[0]
        shapes = model_shapes(config)
        for path, other, _ in found[1:]:
            _require_one_model(first, meta, path, other)
        sources = [store.Tensors(path, weights) for path, _, _ in found]
        for source in sources:
            source.require(shapes)
        means = (_mean(store.finite(s[name], name, s.directory) for s in sources) for name in shapes)
        file = store.part_name("model", 0, 1)
        kept = {key: value for key, value in meta.items() if key not in ("format", "files")}
        kept |= {"step": 0, "updates": 0, "skipped": 0, "skipped_in_a_row": 0, "grad_norms": []}
        kept["average_of"] = [path.name for path, _, _ in found]
        bar = progress(means, total=len(shapes), desc="average")
        store.commit(temporary, out, kept, {file: store.write_tensors(temporary / file, shapes, bar)})


def _mean(tensors: Iterator[Tensor]) -> Tensor:
    """Their running mean in float32; equal tensors have exactly themselves as their mean."""
    mean = next(tensors).float().clone()
    for number, tensor in enumerate(tensors, start=2):
        mean += (tensor.float() - mean) / number
    return mean


def _require_one_model(first: Path, meta: dict[str, Any], path: Path, other: dict[str, Any]) -> None:
    """Refuse (ValueError) two checkpoints whose weights mean different things, though shapes may agree."""
    for key in ("model", "video", "tokenizer"):
        here, there = (
            {field: value for field, value in record["config"][key].items() if not field.startswith("init_")}
            for record in (meta, other)
        )
        if here != there:
            raise ValueError(
                f"{path}: the config's `{key}` is not that of {first}; average checkpoints of one model"
            )
    for key, what in (("codec_fingerprint", "codec weights"), ("latent_stats", "latent statistics")):
        if meta.get(key) != other.get(key):
            raise ValueError(
                f"{path}: was trained with other {what} than {first}; average checkpoints on one data set"
            )


def model_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Global name -> shape of every weight of the model."""
    return {name: tuple(p.shape) for name, p in meta_model(config).named_parameters()}


def write_parts(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    tensor: Callable[[str], Tensor],
    dtype: str,
    part_bytes: int,
) -> dict[str, Record]:
    """Write tensors as model-0000i-of-0000K.safetensors of at most `part_bytes` (or one tensor) and an index.

    Returns each file's `bytes` and `sha256`. Raises ValueError for NaN and values beyond `dtype`.
    """
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"weights cannot be written as {short(dtype)}; choose --dtype {', '.join(DTYPES)}")
    target = DTYPES[dtype]

    def converted(name: str) -> Tensor:
        value = tensor(name)
        if not is_finite(value):
            raise ValueError(f"{name} has numbers that are not finite; use an earlier checkpoint")
        result = value.to(target)
        if not is_finite(result):
            raise ValueError(f"{name} has values beyond {dtype}; choose --dtype bfloat16 or float32")
        return result

    parts: list[list[str]] = [[]]
    room = part_bytes
    for name, shape in shapes.items():
        size = target.itemsize * torch.Size(shape).numel()
        if size > room and parts[-1]:
            parts.append([])
            room = part_bytes
        parts[-1].append(name)
        room -= size
    names = iter(progress(shapes, total=len(shapes), desc="convert"))
    files: dict[str, Record] = {}
    places: dict[str, str] = {}
    for i, part in enumerate(parts):
        file = store.part_name("model", i, len(parts))
        tensors = (converted(next(names)) for _ in part)
        files[file] = store.write_tensors(folder / file, {n: shapes[n] for n in part}, tensors, target)
        places |= dict.fromkeys(part, file)
    files[INDEX] = store.write_index(folder, "model", places)
    return files


@contextmanager
def directory(out: Path) -> Iterator[Path]:
    """A temporary sibling of `out` to fill and rename; gone when the work fails.

    Raises ValueError when `out` exists and is not an empty directory.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"--out {out}: is not an empty directory; choose another or remove it first")
    temporary = out.with_name(out.name + store.TEMPORARY)
    if temporary.exists():
        raise ValueError(
            f"{temporary}: is left of a conversion that was killed, or one is running; remove it"
        )
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise ValueError(f"--out {out}: cannot be made ({error.strerror}); choose another") from None
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
