"""A model's folder is data: its code, pickles and references to other places are refused in one sentence."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatv.curate import model_folder, model_weights
from megatv.curate.settings import EmbedSettings
from megatv.weights import MAX_HEADER_BYTES

pytest.importorskip("cv2", reason="OpenCV is not installed")
transformers = pytest.importorskip("transformers")
embed = pytest.importorskip("megatv.curate.embed")


TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """A tiny ViT as transformers saves it."""
    folder = tmp_path_factory.mktemp("plain")
    transformers.ViTModel(transformers.ViTConfig(**TINY, image_size=32, patch_size=16)).save_pretrained(
        folder
    )
    transformers.ViTImageProcessor(size=32).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(plain: Path, tmp_path: Path) -> Path:
    shutil.copytree(plain, tmp_path / "model")
    return tmp_path / "model"


class Calls:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> object:
        return open, (self.path, "w")


def change(file: Path, **settings: object) -> None:
    found = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**found, **settings}))


def refused(folder: Path, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as error:
        embed.load_embedder(EmbedSettings(model=str(folder)))
    assert "\n" not in str(error.value)


def test_code_of_the_folder_is_not_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for the model, nor its settings, nor its preprocessor; nobody is asked on the terminal."""
    marker = folder.parent / "marker"
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: pass\n")
    parts = ("AutoModel", "AutoConfig", "AutoImageProcessor", "AutoFeatureExtractor", "AutoProcessor")
    names = {part: "evil.Evil" for part in parts}
    change(folder / "config.json", auto_map=names)
    change(folder / "preprocessor_config.json", auto_map=names)
    embed.load_embedder(EmbedSettings(model=str(folder)))  # its kind is known: the code is not needed
    change(folder / "preprocessor_config.json", image_processor_type=None)
    with_kind = json.loads((folder / "config.json").read_text())
    for kind in ("evil", "", None, 3, ["vit"], "detr", "maskformer", "timm_backbone"):
        (folder / "config.json").write_text(json.dumps({**with_kind, "model_type": kind}))
        refused(
            folder,
            r"config\.json: model_type .* none of the image models .* run code of its own \(auto_map\)",
        )
    assert not marker.exists() and not list(folder.rglob("__pycache__"))


def test_pickled_weights_are_not_read(folder: Path) -> None:
    marker = folder.parent / "marker"
    torch.save({"weight": Calls(marker)}, folder / "pytorch_model.bin")
    embed.load_embedder(EmbedSettings(model=str(folder)))
    (folder / "model.safetensors").unlink()
    refused(folder, r"no model\.safetensors; pickled weights \(pytorch_model\.bin\) are not loaded")
    (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {"weight": "pytorch_model.bin"}}')
    refused(folder, r"no model\.safetensors; pickled")
    for name in ("pytorch_model.bin", "../other.safetensors", "/etc/passwd", 3, "a\0.safetensors"):
        change(folder / "model.safetensors.index.json", weight_map={"weight": name}, metadata={})
        refused(folder, r"model\.safetensors\.index\.json: .*(no safetensors|does not name a file within)")
    change(folder / "model.safetensors.index.json", weight_map=["pytorch_model.bin"])
    refused(folder, r"does not name a file within")
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")
    refused(folder, "does not load")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("file", "settings", "reason"),
    [
        (
            "config.json",
            {"quantization_config": {"quant_method": "gptq"}},
            "'quantization_config' loads more",
        ),
        ("config.json", {"attn_implementation": "someone/kernel"}, "'attn_implementation' loads more"),
        ("config.json", {"x": [{"_attn_implementation": "a/b"}]}, "'_attn_implementation' loads more"),
        ("config.json", {"transformers_weights": "../x.safetensors"}, "'transformers_weights' loads more"),
        ("config.json", {"hidden_size": 10**12}, "'hidden_size' is 1000000000000; it must lie between"),
        ("config.json", {"num_hidden_layers": 10**5}, "'num_hidden_layers' is 100000; .* and 512"),
        (
            "config.json",
            {"hidden_size": 160_000},
            r"describes embeddings.cls_token of \[1, 1, 160000\], which the safetensors do not have",
        ),
        ("config.json", {"hidden_size": "16"}, "does not load"),
        ("config.json", {"num_attention_heads": 0}, "does not load"),
        ("config.json", {"configuration_files": ["config.4.0.0.json"]}, "'configuration_files' loads more"),
        ("adapter_config.json", {"base_model_name_or_path": "a/b"}, "adapters are not loaded"),
        ("preprocessor_config.json", {"size": {"height": 99999, "width": 9}}, "'height' is 99999; .* 2048"),
        ("preprocessor_config.json", {"image_processor_type": "pipeline"}, "names no image processor"),
        ("preprocessor_config.json", {"image_processor_type": ["a"]}, "names no image processor"),
        ("preprocessor_config.json", {"image_processor_type": "NoImageProcessor", "auto_map": 3}, "not load"),
    ],
)
def test_settings_that_reach_further_are_refused(
    folder: Path, file: str, settings: dict, reason: str
) -> None:
    change(folder / file, **settings)
    refused(folder, reason)


def test_only_the_weights_that_are_loaded_are_counted(folder: Path) -> None:
    """Neither a file with a hole beside them nor one that the index does not name makes room for a model."""
    for name in ("junk.safetensors", "model-00009-of-00009.safetensors"):
        with (folder / name).open("wb") as junk:
            junk.truncate(1 << 40)
    embed.load_embedder(EmbedSettings(model=str(folder)))
    change(folder / "config.json", hidden_size=2048, num_hidden_layers=500, intermediate_size=8192)
    refused(folder, r"describes embeddings.cls_token of \[1, 1, 2048\], which the safetensors do not have")


def test_more_layers_than_are_stored_are_refused(folder: Path) -> None:
    change(folder / "config.json", num_hidden_layers=512)
    refused(folder, r"describes encoder\.layer\.2\..* which the safetensors do not have")


def test_weights_that_fit_into_no_memory_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file with a hole has tensors of any size."""
    monkeypatch.setattr("megatv.free_memory.available_bytes", lambda device: 1000)
    refused(folder, r"its weights take .* memory on cpu, and 0\.0 are free: take a smaller model")


def test_tables_that_no_file_holds_are_bounded(folder: Path) -> None:
    """The classifier has no pooler, which may be larger than all that it has."""
    file = folder / "model.safetensors"
    state = {name: t for name, t in load_file(file).items() if "pooler" not in name}
    save_file(state, file, {"format": "pt"})
    embed.load_embedder(EmbedSettings(model=str(folder)))
    change(folder / "config.json", pooler_output_size=200_000)
    refused(folder, r"describes [\d,]+ numbers, the safetensors have [\d,]+")


@pytest.mark.parametrize("name", ["pipe", "damaged", "no header"])
def test_files_of_weights_are_regular_and_whole(folder: Path, name: str) -> None:
    part = folder / "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(part)
    change(folder / "model.safetensors.index.json", weight_map={"x": part.name}, metadata={"total_size": 1})
    if name == "pipe":
        part.unlink()
        os.mkfifo(part)
    else:
        part.write_bytes(b"" if name == "no header" else part.read_bytes()[:-1])
    refused(folder, "is not a regular file" if name == "pipe" else "is no safetensors file, or damaged")


def test_settings_of_the_preprocessor_are_checked_wherever_they_lie(folder: Path) -> None:
    """transformers takes `image_processor` of either file."""
    kind = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").unlink()
    refused(folder, r"no preprocessor_config\.json")
    for name in ("processor_config.json", "preprocessor_config.json"):
        for size, reason in [(6000, "'height' is 6000; it must lie"), (32, None)]:
            settings = {**kind, "size": {"height": size, "width": 32}}
            (folder / name).write_text(json.dumps({"image_processor": settings}))
            if reason:
                refused(folder, reason)
        embed.load_embedder(EmbedSettings(model=str(folder)))
        for inner, reason in [
            ({**kind, "image_processor_type": "pipeline"}, "names no image processor"),
            ("x", "must be a JSON object"),
        ]:
            (folder / name).write_text(json.dumps({"image_processor": inner}))
            refused(folder, reason)
        (folder / name).unlink()


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "1" * 5_000, '{"model_type": NaN}', "null"])
@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_settings_that_are_no_object(folder: Path, file: str, text: str) -> None:
    (folder / file).write_text(text)
    refused(folder, "does not load")


def test_timm_builds_by_name_only(folder: Path) -> None:
    timm = {"architecture": "vit_tiny", "pretrained_cfg": {"input_size": [3, 64, 64], "num_classes": 21_843}}
    (folder / "config.json").write_text(json.dumps(timm))
    model_folder.check_transformers_folder(folder)
    for changed, reason in [
        (
            {"architecture": "hf-hub:someone/model"},
            "architecture 'hf-hub:someone/model' is no name of a timm",
        ),
        ({"architecture": "local-dir:/tmp/x"}, "is no name of a timm"),
        ({"architecture": 3}, "is no name of a timm"),
        ({"model_args": {"embed_dim": 500_000}}, "'embed_dim' of model_args may make the model larger"),
        ({"model_args": {"img_size": {"depth": 500}}}, "'depth' of model_args may make the model larger"),
        ({"model_args": {"checkpoint_path": "/tmp/evil.pth"}}, "'checkpoint_path' loads more"),
        ({"pretrained_cfg": {"input_size": [3, 9999, 64]}}, "'input_size' is 9999"),
        ({"pretrained_cfg": {"crop_pct": 1e-9}}, "'crop_pct' is 1e-09"),
    ]:
        (folder / "config.json").write_text(json.dumps({**timm, **changed}))
        with pytest.raises(ValueError, match=reason):
            model_folder.check_transformers_folder(folder)


def test_open_clip_builds_and_loads_from_this_folder_only(tmp_path: Path) -> None:
    file = tmp_path / "open_clip_config.json"
    good = {"model_cfg": {"vision_cfg": {"timm_model_name": "vit_tiny"}, "text_cfg": {"width": 16}}}
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(b"a pickle")
    file.write_text(json.dumps(good))
    with pytest.raises(
        ValueError, match=r"no \*\.safetensors; pickled weights \(\.bin, \.pth\) are not loaded"
    ):
        model_folder.check_open_clip_folder(tmp_path)
    (tmp_path / "open_clip_model.safetensors").touch()
    model_folder.check_open_clip_folder(tmp_path)
    vision = good["model_cfg"]["vision_cfg"]
    for model, reason in [
        ({"vision_cfg": vision, "text_cfg": {"hf_model_name": "a/b"}}, "'hf_model_name' loads more"),
        ({"vision_cfg": {"timm_model_name": "hf-hub:a/b"}}, "is no name of a timm"),
        (
            {"vision_cfg": {**vision, "timm_model_kwargs": {"checkpoint_path": "x"}}},
            "'checkpoint_path' loads",
        ),
        ({"vision_cfg": {**vision, "timm_model_pretrained": True}}, "'timm_model_pretrained' loads more"),
        ({"vision_cfg": {"layers": 10**6}}, "'layers' is 1000000"),
        ({}, "needs model_cfg with vision_cfg"),
        ([], "needs model_cfg with vision_cfg"),
    ]:
        file.write_text(json.dumps({"model_cfg": model}))
        with pytest.raises(ValueError, match=reason):
            model_folder.check_open_clip_folder(tmp_path)


def test_the_kinds_that_are_loaded_load_no_other_model() -> None:
    """None of them calls for a named backbone or opens another folder."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES, model_type_to_module_name

    root = Path(transformers.__file__).parent / "models"
    known = model_folder.MODEL_TYPES & set(CONFIG_MAPPING_NAMES)
    assert len(known) > 40
    for kind in known:
        for file in (root / model_type_to_module_name(kind)).glob("modeling_*.py"):
            source = file.read_text(encoding="utf-8")
            assert "load_backbone" not in source and ".from_pretrained(config" not in source, file


def test_headers_of_weights_are_bounded(tmp_path):
    size = MAX_HEADER_BYTES + 8
    (tmp_path / "model.safetensors").write_bytes(size.to_bytes(8, "little") + b"{}".ljust(100))
    with pytest.raises(ValueError, match="its header is longer than 32 MiB"):
        model_weights._read_header(tmp_path / "model.safetensors")
