"""What the folder of an image model may ask of the library that opens it, checked before it does.

Such folders are shared. Their JSON may name Python files to run (`auto_map`), pickles, other folders and
repositories to load, kernels to download, and sizes that take any memory. Libraries follow much of that by
default, or ask on the terminal. Here a folder is data: safetensors, and settings of a known kind of model.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatv.regular_file import read_bytes
from megatv.untrusted import inside, parse_json

MODEL_TYPES = {
    *("aimv2", "aimv2_vision_model", "align", "altclip", "beit", "bit", "chinese_clip", "clip"),
    *("clip_vision_model", "convnext", "convnextv2", "cvt", "data2vec-vision", "deit", "dinov2"),
    *("dinov2_with_registers", "dinov3_convnext", "dinov3_vit", "efficientnet", "focalnet", "hiera", "ijepa"),
    *("levit", "metaclip_2", "mobilenet_v1", "mobilenet_v2", "mobilevit", "mobilevitv2", "poolformer", "pvt"),
    *("pvt_v2", "regnet", "resnet", "siglip", "siglip2", "siglip2_vision_model", "siglip_vision_model"),
    *("swiftformer", "swin", "swinv2", "timm_wrapper", "vit", "vit_mae", "vit_msn"),
}
"""Models of transformers that are built from numbers alone; others load a backbone that config.json names."""
REFUSED = {
    *("quantization_config", "transformers_weights", "attn_implementation", "_attn_implementation"),
    *("hf_model_name", "timm_model_pretrained", "checkpoint_path", "configuration_files"),
}
"""Settings by which transformers, timm or open_clip load more than this folder's weights."""
HARMLESS = (None, False, "eager", "sdpa")
"""Values of REFUSED settings that load nothing."""
SIDES = {
    *("size", "crop_size", "pad_size", "height", "shortest_edge", "longest_edge"),
    *("image_size", "img_size", "input_size"),
}
"""Settings in pixels."""
SIZELESS = {
    *("img_size", "dynamic_img_size", "dynamic_img_pad", "global_pool", "class_token", "no_embed_class"),
    *("act_layer", "norm_layer", "in_chans", "num_classes", "use_head", "pre_norm", "final_norm", "fc_norm"),
}
"""Arguments of an architecture of timm that leave its weights about as large as its name says."""
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""Where transformers looks for the settings by which pictures are prepared."""
MAX_SIDE, MAX_LAYERS, MAX_NUMBER = 2048, 512, 1 << 19
"""Most pixels of a side, most layers, and the most of all other numbers, such as widths and vocabularies."""
LEAST_CROP = 0.1
"""Least `crop_pct`, by which timm divides the side of a picture."""
NAME = re.compile(r"[A-Za-z0-9_.]+")
"""Name of an architecture of timm; `hf-hub:...` and `local-dir:...` would load from elsewhere."""


def check_transformers_folder(directory: Path) -> list[Path]:
    """The files of weights that are loaded, when `config.json` and its neighbours ask for nothing else.

    Raises ValueError with a sentence that names the file and the setting.
    """
    config = read_settings(directory / "config.json")
    timm = "pretrained_cfg" in config
    kind = "timm_wrapper" if timm else config.get("model_type")
    if not isinstance(kind, str) or kind not in MODEL_TYPES:
        code = ", and it asks to run code of its own (auto_map)" if "auto_map" in config else ""
        raise ValueError(
            f"{directory / 'config.json'}: model_type {_short(kind)} is none of the image models that are "
            f"loaded{code}; known: {', '.join(sorted(MODEL_TYPES))}"
        )
    _check_architecture(config if timm else {}, "architecture", directory / "config.json")
    larger = [key for key, _ in _walk(config.get("model_args")) if key not in SIZELESS]
    if timm and larger:
        raise ValueError(
            f"{directory / 'config.json'}: '{larger[0]}' of model_args may make the model larger than its "
            "architecture; leave it out"
        )
    found = [directory / name for name in PROCESSORS if os.path.lexists(directory / name)]
    if not found and not timm:
        raise ValueError(f"{directory}: no {PROCESSORS[0]}; copy the folder again")
    for file in found:
        _check_preprocessor(file)
    if (directory / "adapter_config.json").exists():
        raise ValueError(
            f"{directory / 'adapter_config.json'}: adapters are not loaded; merge it into a model"
        )
    return _weight_files(directory)


def check_open_clip_folder(directory: Path) -> None:
    """The same for a folder of open_clip's, whose settings lie in `open_clip_config.json`."""
    file = directory / "open_clip_config.json"
    model = read_settings(file).get("model_cfg")
    vision = model.get("vision_cfg") if isinstance(model, dict) else None
    if not isinstance(vision, dict):
        raise ValueError(f"{file}: needs model_cfg with vision_cfg; copy the folder again")
    _check_architecture(vision, "timm_model_name", file)
    if not any(directory.glob("*.safetensors")):
        raise ValueError(
            f"{directory}: no *.safetensors; pickled weights (.bin, .pth) are not loaded, since they can run "
            "code: take the model's safetensors, or convert them where you trust them"
        )


def read_settings(file: Path) -> dict[str, Any]:
    """The JSON object of a file, without settings that load more than the folder holds or take any memory."""
    settings = _read_object(file)
    for key, value in _walk(settings):
        if key in REFUSED and value not in HARMLESS:
            raise ValueError(f"{file}: '{key}' loads more than this folder's weights; remove it")
        if isinstance(value, int | float) and not key.endswith("token_id"):
            least, most = LEAST_CROP if key == "crop_pct" else -_limit(key), _limit(key)
            if not least <= value <= most:
                raise ValueError(
                    f"{file}: '{key}' is {_short(value)}; it must lie between {least} and {most}"
                )
    return settings


def _limit(key: str) -> int:
    if key in SIDES:
        return MAX_SIDE
    return MAX_LAYERS if any(word in key for word in ("layers", "depth", "blocks")) else MAX_NUMBER


def _read_object(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"{file}: not found")
    try:
        settings = parse_json(read_bytes(file, links=True))
    except ValueError as error:
        raise ValueError(f"{file}: is no JSON ({error}); copy the folder again") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{file}: must hold a JSON object; copy the folder again")
    return settings


def _check_preprocessor(file: Path) -> None:
    settings = read_settings(file)
    settings = settings.get("image_processor", settings)  # as transformers does
    if not isinstance(settings, dict):
        raise ValueError(f"{file}: image_processor must be a JSON object; copy the folder again")
    kind = settings.get("image_processor_type")
    if kind is not None and not (
        isinstance(kind, str) and kind.removesuffix("Fast").endswith("ImageProcessor")
    ):
        raise ValueError(f"{file}: image_processor_type {_short(kind)} names no image processor")


def _check_architecture(settings: dict[str, Any], key: str, file: Path) -> None:
    name = settings.get(key, "")
    if not isinstance(name, str) or (name and not NAME.fullmatch(name)):
        raise ValueError(f"{file}: {key} {_short(name)} is no name of a timm architecture, such as vit_base")


def _weight_files(directory: Path) -> list[Path]:
    """One safetensors file, or those that an index names within the folder: what transformers would load."""
    single = directory / "model.safetensors"
    if single.is_file():
        return [single]
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        raise ValueError(
            f"{directory}: no model.safetensors; pickled weights (pytorch_model.bin) are not loaded, since "
            "they can run code: take the model's safetensors, or convert them where you trust them"
        )
    places: Any = _read_object(index).get("weight_map")
    files = {}
    for name in places.values() if isinstance(places, dict) else [places]:
        try:
            files[name] = inside(directory, name, links=True)
        except ValueError as error:
            raise ValueError(f"{index}: {error}") from None
        if not name.endswith(".safetensors"):
            raise ValueError(f"{index}: {_short(name)} is no safetensors file, and no other is loaded")
    return list(files.values())


def _walk(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every (key, value) below a JSON value; entries of a list have the list's key."""
    if isinstance(value, dict):
        for name, below in value.items():
            yield name, below
            yield from _walk(below, name)
    elif isinstance(value, list):
        for below in value:
            yield key, below
            yield from _walk(below, key)


def _short(value: Any) -> str:
    return repr(value)[:80]
