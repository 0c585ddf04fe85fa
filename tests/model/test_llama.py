"""The text tower is Hugging Face's Llama: same logits from the same files, both ways of naming."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from megatv_kernels import Document, build_record
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from megatv.config import RopeScaling, load_config
from megatv.model.init import initialize
from megatv.model.llama import LlamaDirectory, llama_names
from megatv.model.llama_config import llama_config
from megatv.model.mot import MoT
from megatv.types import IGNORE, Batch

TOY = load_config(Path(__file__).parents[2] / "configs/toy_world.yaml")
TEXT = 100


def with_model(path, **changes):
    return dataclasses.replace(
        TOY,
        sequence=dataclasses.replace(TOY.sequence, examples_per_row=1, context_tokens=2 * 13 * 4 + TEXT),
        model=dataclasses.replace(
            TOY.model, layers=2, width=64, ffn=96, kv_heads=2, init_text=str(path), **changes
        ),
    )


def save_llama(config, shards="5GB"):
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(LlamaConfig(**llama_config(config.model), initializer_range=0.2))
    theirs.save_pretrained(config.model.init_text, max_shard_size=shards)
    return theirs.requires_grad_(False)


def text_only(config, ids):
    """A packed row that holds one document of words alone."""
    chunks, size = config.chunks_per_row, (config.latent_height, config.latent_width)
    latents = torch.zeros(chunks, 16, *size)
    record = build_record(
        [Document(torch.zeros(TEXT, dtype=torch.int32).numpy(), torch.zeros(0, dtype=torch.int32).numpy())],
        text_rows=TEXT,
        chunk_rows=config.tokens_per_chunk,
        chunks=chunks,
    )
    positions = torch.zeros(config.sequence.context_tokens, dtype=torch.int32)
    positions[:TEXT] = torch.arange(TEXT)
    targets = torch.full((TEXT,), IGNORE)
    flags = torch.zeros(chunks, dtype=torch.bool)
    times = torch.ones(chunks)
    return Batch(ids, targets, positions, latents, latents, latents, times, times, flags, record, ("words",))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scaling", [None, RopeScaling(factor=32.0, original_context=32)])
@pytest.mark.parametrize("shards", ["5GB", "50KB"])
def test_logits_equal_transformers(tmp_path, tied, scaling, shards):
    config = with_model(tmp_path, tied_embeddings=tied, rope_scaling=scaling)
    theirs = save_llama(config, shards)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shards == "50KB")
    model = MoT(config).requires_grad_(False)
    initialize(model.named_parameters(), config)
    ids = torch.randint(0, 256, (TEXT,), generator=torch.Generator().manual_seed(1))
    found = model(text_only(config, ids)).text_logits
    expected = theirs(ids[None]).logits[0]
    # all but BOF's and EOF's columns, which initialisation resets
    torch.testing.assert_close(found[:, :256], expected[:, :256], rtol=1e-4, atol=1e-4)


def test_names_cover_the_whole_llama_once():
    config = with_model("", tied_embeddings=False)
    theirs = LlamaForCausalLM(LlamaConfig(**llama_config(config.model))).state_dict()
    names = llama_names(config.model)
    assert sorted(names.values()) == sorted(theirs)
    ours = {name: p.shape for name, p in MoT(config).named_parameters()}
    assert all(ours[name] == theirs[other].shape for name, other in names.items())


def test_copied_video_tower_is_llama_too(tmp_path):
    config = with_model(tmp_path, init_video="copy")
    theirs = save_llama(config).state_dict()
    model = MoT(config)
    initialize(model.named_parameters(), config)
    copied = model.get_parameter("blocks.1.video.down.weight")
    assert torch.equal(copied, theirs["model.layers.1.mlp.down_proj.weight"])


def test_faults_name_the_file_and_the_remedy(tmp_path):
    config = with_model(tmp_path)
    with pytest.raises(ValueError, match=r"config\.json: cannot be read .*; give a Hugging Face Llama"):
        LlamaDirectory(tmp_path, config.model)
    save_llama(config)
    wider = dataclasses.replace(config.model, ffn=128)
    with pytest.raises(
        ValueError, match=r"intermediate_size is 96, but .*128; make the two agree, by .* model.ffn=96$"
    ):
        LlamaDirectory(tmp_path, wider)
    llama3_rule = dataclasses.replace(config.model, rope_scaling=RopeScaling(factor=8.0))
    with pytest.raises(ValueError, match="rope_scaling is None"):
        LlamaDirectory(tmp_path, llama3_rule)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model\.safetensors: cannot read .*; download"):
        LlamaDirectory(tmp_path, config.model).tensor("embed.text.weight")
    weights.unlink()
    with pytest.raises(ValueError, match=r"holds no weights, neither model\.safetensors nor pytorch_model"):
        LlamaDirectory(tmp_path, config.model).tensor("embed.text.weight")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        LlamaDirectory(tmp_path, config.model)


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("../outside.safetensors", "'../outside.safetensors' is not a plain file name"),
        ("/dev/zero", "'/dev/zero' is not a plain file name"),
        (5, "has no weight_map of names"),
        (["a"], "has no weight_map of names"),
        ("gone.safetensors", r"gone\.safetensors: cannot read it"),
        ("pipe.safetensors", r"pipe\.safetensors: is not a regular file"),
        ("part.safetensors", r"part\.safetensors: lacks lm_head"),
    ],
)
def test_an_index_names_files_of_its_folder(tmp_path, part, message):
    config = with_model(tmp_path / "llama")
    save_llama(config)
    weights = tmp_path / "llama/model.safetensors"
    places = dict.fromkeys(load_file(weights), part)
    weights.rename(tmp_path / "outside.safetensors")
    os.mkfifo(tmp_path / "llama/pipe.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "llama/part.safetensors")
    (tmp_path / "llama" / INDEX).write_text(json.dumps({"weight_map": places}))
    with pytest.raises(ValueError, match=message):
        LlamaDirectory(tmp_path / "llama", config.model)


def test_files_may_be_links_as_in_the_cache_of_hugging_face(tmp_path):
    config = with_model(tmp_path / "snapshot")
    save_llama(config, shards="50KB")
    (tmp_path / "blobs").mkdir()
    for number, file in enumerate((tmp_path / "snapshot").iterdir()):
        blob = tmp_path / f"blobs/{number}"
        file.rename(blob)
        file.symlink_to(f"../blobs/{number}")
    assert LlamaDirectory(tmp_path / "snapshot", config.model).tensor("embed.text.weight").shape == (328, 64)


@pytest.mark.parametrize("name", ["config.json", INDEX])
@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{", "[]", "\udcff", "huge"], ids=["deep", "cut", "list", "bytes", "huge"]
)
def test_strange_json_is_one_sentence(tmp_path, name, text):
    config = with_model(tmp_path)
    save_llama(config)
    if text == "huge":
        with (tmp_path / name).open("wb") as file:
            file.truncate(1 << 40)
    else:
        (tmp_path / name).write_text(text, errors="surrogateescape")
    with pytest.raises(
        ValueError, match=r"\.json: (not valid JSON|holds no fields|has .* are read)"
    ) as caught:
        LlamaDirectory(tmp_path, config.model)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", "2"),
        ("vocab_size", 10**400),
        ("hidden_size", None),
        ("rope_scaling", [[[["x" * 10**6]]]]),
        ("model_type", ["llama"]),
        ("model_type", "x" * 10**6),
    ],
)
def test_fields_of_another_type_or_size_are_refused(tmp_path, key, value):
    config = with_model(tmp_path)
    save_llama(config)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {key: value}))
    with pytest.raises(ValueError, match=f"config.json: {key} is ") as caught:
        LlamaDirectory(tmp_path, config.model)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("dtype", [torch.int8, torch.float64, torch.bool, torch.float8_e4m3fn])
def test_numbers_that_weights_are_not(tmp_path, dtype):
    config = with_model(tmp_path)
    save_llama(config)
    file = tmp_path / "model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)
    with pytest.raises(
        ValueError, match="and weights are F32, BF16, F16; give a model that is not quantised"
    ):
        LlamaDirectory(tmp_path, config.model)
