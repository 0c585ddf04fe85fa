"""Conversion against transformers as the oracle: equal logits, equal bits, and no half-written output."""

import dataclasses
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from megatv.checkpoint import store
from megatv.checkpoint.convert import INDEX, Weights, export, from_llama, model_shapes, to_llama, write_parts
from megatv.checkpoint.describe import describe, human, read_header
from megatv.checkpoint.load import find_checkpoint, load_model
from megatv.config import RopeScaling, config_from_dict, load_config, save_config
from megatv.model.llama import LlamaDirectory, llama_names
from megatv.model.llama_config import llama_config
from megatv.sample.cache import KVCache

ROOT = Path(__file__).parents[2]
TOY = load_config(ROOT / "configs/toy_world.yaml")
SCALING = RopeScaling(factor=8.0, original_context=32)
PART = 60_000
"""Bytes: small enough for several parts."""


def tiny(**model):
    """A toy configuration with a small grouped-query Llama as its towers."""
    sizes = {"vocab": 512, "layers": 2, "width": 64, "ffn": 96, "heads": 4, "kv_heads": 2}
    return dataclasses.replace(TOY, model=dataclasses.replace(TOY.model, **{**sizes, **model}))


def save_llama(path, config, dtype=torch.float32, shards="5GB"):
    torch.manual_seed(0)
    fields = {**llama_config(config.model), "bos_token_id": 508, "eos_token_id": 509}
    model = LlamaForCausalLM(LlamaConfig(**fields, initializer_range=0.2, max_position_embeddings=4096))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # transformers starts them at 1, which would hide a swap
                parameter.copy_(torch.rand_like(parameter) + 0.5)
    model = model.to(dtype)
    model.save_pretrained(path, max_shard_size=shards)
    return model.requires_grad_(False)


def text_logits(model, config, ids):
    cache = KVCache.empty(config.model, 1, len(ids), device=torch.device("cpu"), dtype=torch.float32)
    return model.text_step(ids[None], torch.arange(len(ids))[None], cache)[0]


def tensors_of(directory):
    files = sorted(directory.glob("model*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def assert_same_bits(left, right):
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(tensor.view(torch.uint8), right[name].view(torch.uint8)), name


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scaling", [None, SCALING])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_logits_equal_transformers(tmp_path, tied, scaling, kv_heads):
    config = tiny(tied_embeddings=tied, rope_scaling=scaling, kv_heads=kv_heads)
    theirs = save_llama(tmp_path / "llama", config)
    from_llama(tmp_path / "llama", config, tmp_path / "out")
    found = find_checkpoint(tmp_path / "out")
    (model, loaded), meta = load_model(*found), found[1]
    assert (loaded, meta["step"]) == (config, 0)
    ids = torch.randint(0, 512, (100,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, expected = text_logits(model, config, ids), theirs(ids[None]).logits[0]
    assert expected.std() > 0.1  # the comparison would be empty at zero
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("shards", "part_bytes"), [("5GB", PART), ("50KB", 10**9)])
def test_there_and_back_is_bit_identical(tmp_path, dtype, tied, shards, part_bytes):
    config = tiny(tied_embeddings=tied, rope_scaling=SCALING)
    llama, back = tmp_path / "llama", tmp_path / "back"
    theirs = save_llama(llama, config, dtype, shards)
    assert (llama / INDEX).exists() == (shards == "50KB")
    from_llama(llama, config, tmp_path / "ours")
    to_llama(tmp_path / "ours", back, weights="auto", like=llama, dtype=None, part_bytes=part_bytes)
    assert_same_bits(tensors_of(back), tensors_of(llama))
    assert json.loads((back / "config.json").read_text()) == json.loads((llama / "config.json").read_text())
    loaded = AutoModelForCausalLM.from_pretrained(back, dtype="auto")
    assert_same_bits(loaded.state_dict(), theirs.state_dict())


def test_fields_that_a_stranger_added_are_not_passed_on(tmp_path, save_checkpoint):
    """`auto_map` would have those who load the written folder run code."""
    config = tiny()
    checkpoint = save_checkpoint(tmp_path / "step_00000007", config)
    save_llama(tmp_path / "llama", config)
    fields = json.loads((tmp_path / "llama/config.json").read_text())
    added = {"auto_map": {"AutoModelForCausalLM": "evil--evil.Evil"}, "_name_or_path": "evil/evil"}
    (tmp_path / "llama/config.json").write_text(json.dumps({**fields, **added, "pad_token_id": 7}))
    like = tmp_path / "llama"
    to_llama(checkpoint, tmp_path / "out", weights="auto", like=like, dtype=None, part_bytes=PART)
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert not written.keys() & added.keys() and written["pad_token_id"] == 7


def test_back_and_there_keeps_a_trained_text_tower(tmp_path, save_checkpoint):
    config = tiny()
    checkpoint = save_checkpoint(tmp_path / "step_00000007", config)
    to_llama(checkpoint, tmp_path / "llama", weights="auto", like=None, dtype=None, part_bytes=PART)
    from_llama(tmp_path / "llama", config, tmp_path / "again")
    before, after = store.Tensors(checkpoint, "model"), store.Tensors(tmp_path / "again", "model")
    assert all(torch.equal(before[name], after[name]) for name in llama_names(config.model))
    fields = json.loads((tmp_path / "llama/config.json").read_text())
    assert (fields["torch_dtype"], fields["architectures"]) == ("float32", ["LlamaForCausalLM"])
    AutoModelForCausalLM.from_pretrained(tmp_path / "llama")


@pytest.mark.parametrize("init_video", ["copy", "random"])
def test_video_tower_starts_as_the_config_says(tmp_path, init_video):
    config = tiny(init_video=init_video)
    save_llama(tmp_path / "llama", config)
    from_llama(tmp_path / "llama", config, tmp_path / "out")
    tensors = store.Tensors(tmp_path / "out", "model")
    for name in ("blocks.1.{}.wq.weight", "blocks.0.{}.ffn_norm.weight", "head.{}_norm.weight"):
        same = torch.equal(tensors[name.format("text")], tensors[name.format("video")])
        assert same == (init_video == "copy"), name
    assert not tensors["head.up.full_blocks.0.conv2.weight"].any()


def test_averaged_weights_are_preferred(tmp_path, save_checkpoint):
    checkpoint = save_checkpoint(tmp_path / "step_00000007", tiny(), kinds=("model", "ema"))
    choices: dict[Weights, str] = {"auto": "ema", "ema": "ema", "model": "model"}
    for weights, kind in choices.items():
        export(checkpoint, tmp_path / weights, weights=weights, dtype="float32", part_bytes=10**9)
        assert_same_bits(tensors_of(tmp_path / weights), load_file(checkpoint / f"{kind}.safetensors"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_export_is_a_checkpoint_to_sample_from(tmp_path, dtype, save_checkpoint):
    config = tiny()
    checkpoint = save_checkpoint(tmp_path / "step_00000007", config)
    export(checkpoint, tmp_path / "out", weights="auto", dtype=dtype, part_bytes=PART)
    places = json.loads((tmp_path / "out" / INDEX).read_text())["weight_map"]
    assert places.keys() == model_shapes(config).keys() and len(set(places.values())) > 2
    assert config_from_dict(json.loads((tmp_path / "out/config.json").read_text())) == config
    found = find_checkpoint(tmp_path / "out")
    (model, loaded), meta = load_model(*found), found[1]
    original = load_model(*find_checkpoint(checkpoint))[0]
    assert (loaded, meta["step"]) == (config, 7)
    for name, parameter in original.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter.to(getattr(torch, dtype)).float())


def test_one_tensor_is_in_memory_at_a_time(tmp_path, monkeypatch):
    config = tiny(tied_embeddings=False, layers=4, init_video="random")
    save_llama(tmp_path / "llama", config)
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0
    read = LlamaDirectory.tensor

    def counted(self, name):
        nonlocal most
        tensor = read(self, name)
        alive.add(tensor)
        most = max(most, len(alive))
        return tensor

    monkeypatch.setattr(LlamaDirectory, "tensor", counted)
    from_llama(tmp_path / "llama", config, tmp_path / "out")
    assert most <= 2  # the one being written, and the one being read


def edit_json(path, edit):
    tree = json.loads(path.read_text())
    edit(tree)
    path.write_text(json.dumps(tree))


def edit_tensors(directory, edit):
    file = sorted(directory.glob("model*.safetensors"))[0]
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


NORM = "model.norm.weight"
BAD_LLAMAS = {
    "no config": (lambda d: (d / "config.json").unlink(), "cannot be read"),
    "other model type": (
        lambda d: edit_json(d / "config.json", lambda t: t.update(model_type="mistral")),
        "model_type is 'mistral'; a text tower takes a Llama only",
    ),
    "biases": (
        lambda d: edit_json(d / "config.json", lambda t: t.update(attention_bias=True)),
        "attention_bias is true",
    ),
    "other size": (
        lambda d: edit_json(d / "config.json", lambda t: t.update(hidden_size=128)),
        "hidden_size is 128, but the run's `model` section says 64",
    ),
    "no index entry": (
        lambda d: edit_json(d / INDEX, lambda t: t["weight_map"].pop(NORM)),
        f"has no entry for {NORM}",
    ),
    "index lies": (
        lambda d: edit_json(d / INDEX, lambda t: t["weight_map"].update({NORM: t["weight_map"][_first(d)]})),
        f"lacks {NORM}, which {INDEX} places there",
    ),
    "index is none": (lambda d: (d / INDEX).write_text("[]"), "holds no fields"),
    "no part": (lambda d: sorted(d.glob("model-*"))[-1].unlink(), "cannot read it"),
    "cut part": (
        lambda d: sorted(d.glob("model-*"))[0].write_bytes(sorted(d.glob("model-*"))[0].read_bytes()[:500]),
        "cannot read it",
    ),
    "wrong shape": (
        lambda d: edit_tensors(d, lambda t: t.update({_first(d): torch.zeros(3, 3)})),
        "model.embed_tokens.weight is [3, 3], its config.json needs [512, 64]",
    ),
    "strange tensor": (
        lambda d: edit_json(d / INDEX, lambda t: t["weight_map"].update(extra=_add(d, "extra"))),
        "holds extra, for which a text tower has no place",
    ),
}


BAD_LLAMAS |= {
    "NaN": (
        lambda d: edit_tensors(d, lambda t: t[_first(d)].view(-1)[-1:].fill_(float("nan"))),
        "model.embed_tokens.weight has numbers that are not finite",
    ),
    "infinity": (
        lambda d: edit_tensors(d, lambda t: t[_first(d)].view(-1)[:1].fill_(float("-inf"))),
        "model.embed_tokens.weight has numbers that are not finite",
    ),
    "no weights": (
        lambda d: [file.unlink() for file in d.glob("model*")],
        "holds no weights, neither model.safetensors nor pytorch_model.bin",
    ),
    "a program": (
        lambda d: ([f.unlink() for f in d.glob("model*")], torch.save(print, d / "pytorch_model.bin")),
        "pytorch_model.bin: its pickle names",
    ),
    "no tensors": (
        lambda d: ([f.unlink() for f in d.glob("model*")], torch.save({"a": 1}, d / "pytorch_model.bin")),
        "pytorch_model.bin: holds other things than tensors by name",
    ),
}


def _first(directory):
    return "model.embed_tokens.weight"


def _add(directory, name):
    edit_tensors(directory, lambda tensors: tensors.update({name: torch.zeros(2)}))
    return sorted(directory.glob("model*.safetensors"))[0].name


@pytest.mark.parametrize("fault", BAD_LLAMAS)
def test_a_bad_llama_is_one_sentence_and_leaves_nothing(tmp_path, fault):
    damage, sentence = BAD_LLAMAS[fault]
    config = tiny(tied_embeddings=False)
    save_llama(tmp_path / "llama", config, shards="50KB")
    damage(tmp_path / "llama")
    with pytest.raises(ValueError) as caught:
        from_llama(tmp_path / "llama", config, tmp_path / "out")
    assert sentence in str(caught.value) and str(tmp_path / "llama") in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["llama"]


def test_redundant_tensors_are_allowed(tmp_path):
    """Old directories hold rotary tables and, when tied, the head a second time."""
    config = tiny(tied_embeddings=True)
    save_llama(tmp_path / "llama", config)
    extras = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8),
        "lm_head.weight": torch.zeros(2),
    }
    edit_tensors(tmp_path / "llama", lambda tensors: tensors.update(extras))
    from_llama(tmp_path / "llama", config, tmp_path / "out")


def test_outputs_are_never_overwritten_nor_left_half_written(tmp_path, monkeypatch, save_checkpoint):
    checkpoint = save_checkpoint(tmp_path / "step_00000007", tiny())
    out = tmp_path / "out"
    options: dict[str, Any] = {"weights": "auto", "dtype": "float32", "part_bytes": PART}
    (out / "precious").mkdir(parents=True)
    with pytest.raises(ValueError, match="is not an empty directory"):
        export(checkpoint, out, **options)
    with pytest.raises(ValueError, match="is not an empty directory"):
        export(checkpoint, checkpoint / "meta.json", **options)
    (out / "precious").rmdir()

    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_index", fail)
        with pytest.raises(OSError, match="disk full"):
            export(checkpoint, out, **options)
    assert not any(out.iterdir()) and not (tmp_path / "out.tmp").exists()
    (tmp_path / "out.tmp").mkdir()
    with pytest.raises(ValueError, match="is left of a conversion that was killed"):
        export(checkpoint, out, **options)
    (tmp_path / "out.tmp").rmdir()
    export(checkpoint, out, **options)
    assert {p.name for p in tmp_path.iterdir()} == {"step_00000007", "out"}


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path, save_checkpoint):
    config = tiny()
    checkpoint = save_checkpoint(tmp_path / "step_00000007", config)
    save_llama(tmp_path / "llama", tiny(ffn=128))
    options: dict[str, Any] = {"weights": "auto", "dtype": "float32", "part_bytes": PART}
    with pytest.raises(ValueError, match="intermediate_size is 128"):
        to_llama(checkpoint, tmp_path / "out", like=tmp_path / "llama", **options)
    weights = checkpoint / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    for convert in (
        lambda: export(checkpoint, tmp_path / "out", **options),
        lambda: load_model(*find_checkpoint(checkpoint)),
    ):
        with pytest.raises(ValueError, match="does not match its sha256"):
            convert()
    assert not (tmp_path / "out").exists()


def test_values_beyond_float16_are_refused(tmp_path):
    with pytest.raises(ValueError, match="big has values beyond float16"):
        write_parts(tmp_path, {"big": (2,)}, lambda _: torch.tensor([1.0, 1e6]), "float16", PART)


@settings(max_examples=30)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    part_bytes=st.integers(1, 200),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_parts_hold_every_tensor_once_and_keep_the_limit(tmp_path_factory, sizes, part_bytes, dtype):
    folder = tmp_path_factory.mktemp("parts")
    tensors = {f"t{i}": torch.full((size,), float(i)) for i, size in enumerate(sizes)}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    files = write_parts(folder, shapes, tensors.__getitem__, dtype, part_bytes)
    found = tensors_of(folder)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[n].float(), t) for n, t in tensors.items())
    assert {p.name: p.stat().st_size for p in folder.iterdir()} == {n: r["bytes"] for n, r in files.items()}
    for part in folder.glob("*.safetensors"):
        entries = list(read_header(part))
        assert len(entries) == 1 or sum(e.bytes for e in entries) <= part_bytes


def test_describe_counts_every_tensor(tmp_path, save_checkpoint):
    config = tiny()
    checkpoint = save_checkpoint(tmp_path / "run/checkpoints/step_00000007", config)
    lines = describe(tmp_path / "run").splitlines()
    shapes = model_shapes(config)
    assert lines[0] == str(checkpoint) and "step: 7" in lines
    table = lines[lines.index("") + 1 :]
    assert len(table) == len(shapes) + 4 and len({len(line) for line in table}) == 1
    assert "512 x 64" in next(line for line in table if line.startswith("embed.text.weight "))
    total = sum(torch.Size(shape).numel() for shape in shapes.values())
    assert human(total) in table[-1] and human(4 * total, "B") in table[-1]
    assert [human(n) for n in (7, 999, 1000, 15_290_000_000)] == ["7", "999", "1 K", "15.3 G"]


@pytest.mark.parametrize(
    "junk", [b"", b"1234567", b"\xff" * 40, (20).to_bytes(8, "little") + b"[" + b" " * 19]
)
def test_describe_refuses_what_is_no_safetensors(tmp_path, junk):
    (tmp_path / "a.safetensors").write_bytes(junk)
    with pytest.raises(ValueError, match="is not a safetensors file, or damaged"):
        describe(tmp_path)


def test_describe_refuses_cut_and_absent_files(tmp_path):
    with pytest.raises(ValueError, match="no safetensors file there"):
        describe(tmp_path)
    save_file({"a": torch.zeros(100)}, tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(whole[:-4])
    with pytest.raises(ValueError, match=f"{len(whole) - 4} bytes instead of {len(whole)}; it is cut short"):
        describe(tmp_path / "a.safetensors")


@pytest.mark.slow
def test_the_command_line(tmp_path, python):
    config = tiny(rope_scaling=SCALING)
    save_config(config, tmp_path / "run.yaml")
    save_llama(tmp_path / "llama", config, torch.bfloat16)

    def tool(*arguments):
        result = python("tools/convert_ckpt.py", *arguments, check=False)
        return result.returncode, result.stdout, result.stderr

    llama, ours, back, full = (tmp_path / name for name in ("llama", "ours", "back", "full"))
    made = ("--config", tmp_path / "run.yaml", "--out", ours, "--set", "run.seed=3")
    assert tool("hf-to-megatv", llama, *made)[0] == 0
    assert load_model(*find_checkpoint(tmp_path / "ours"))[1].run.seed == 3
    assert tool("megatv-to-hf", ours, "--out", back, "--like", llama, "--part-gb", "0.00006")[0] == 0
    assert_same_bits(tensors_of(tmp_path / "back"), tensors_of(tmp_path / "llama"))
    assert tool("export", ours, "--out", full, "--dtype", "bfloat16")[0] == 0
    code, table, _ = tool("inspect", full)
    assert code == 0 and "BF16" in table and "step: 0" in table
    code, _, error = tool("export", ours, "--out", full)
    assert (code, error) == (
        2,
        f"error: --out {full}: is not an empty directory; choose another or remove it first\n",
    )


def test_names_of_strangers_reach_no_terminal(tmp_path, python):
    for number in (1, 2):
        save_file(
            {f"\x1b[2J\x07{number}": torch.zeros(1), "a": torch.ones(number)}, tmp_path / f"{number}.st"
        )
    for words in (("inspect", tmp_path / "1.st"), ("diff", tmp_path / "1.st", tmp_path / "2.st")):
        told = python("tools/convert_ckpt.py", *words, check=False).stdout
        assert "\\x1b[2J\\x071" in told and not any(c in told for c in "\x1b\x07")
