"""config.json of a Llama, held against transformers: what is taken computes the same, the rest is refused."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from megatv.checkpoint.convert import from_llama
from megatv.checkpoint.load import find_checkpoint, load_model
from megatv.config import ModelConfig, load_config
from megatv.model.llama_config import (
    DEFAULTS,
    FIXED,
    NAMES,
    NO_EFFECT,
    ROPE,
    llama_config,
    read_llama_config,
)
from megatv.model.rope import inverse_frequencies
from megatv.sample.cache import KVCache
from megatv.schema import build

TOY = Path(__file__).parents[2] / "configs/toy_world.yaml"
SIZES = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def test_every_field_of_transformers_is_sorted_in():
    """A field that a later transformers adds stands in none of the lists until somebody has looked at it."""
    found = set(LlamaConfig().to_dict())
    for kind in (LlamaConfig, PretrainedConfig):
        found |= set(inspect.signature(kind.__init__).parameters) - {"self", "kwargs"}
    sorted_in = {*NAMES.values(), *ROPE, *FIXED, *NO_EFFECT.split()}
    assert found - sorted_in == set()
    lists = [*NAMES.values(), *ROPE, *FIXED, *NO_EFFECT.split()]
    assert len(lists) == len(set(lists))


def test_defaults_are_those_of_transformers():
    theirs = LlamaConfig()
    assert {key: getattr(theirs, key) for key in DEFAULTS} == DEFAULTS
    assert {key: getattr(theirs, key, values[0]) for key, values in FIXED.items()} == {
        key: values[0] for key, values in FIXED.items()
    }
    read = read_llama_config({"model_type": "llama"}, Path("config.json"))
    assert (read["kv_heads"], read["head_size"]) == (theirs.num_key_value_heads, None)


def test_what_we_write_is_what_we_read():
    model = ModelConfig(2, 64, 96, 4, 2, 512, True, head_size=24, norm_eps=1e-4, rope_theta=1e5)
    fields = {"model_type": "llama", **llama_config(model)}
    read = read_llama_config(fields, Path("config.json"))
    assert dataclasses.replace(model, **read) == model


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    # what transformers is told; what the file says then (None: leaves out); how the weights are saved
    "plain": ({}, {}, {}),
    "tied": ({"tie_word_embeddings": True}, {}, {}),
    "wide heads": ({"head_dim": 32}, {}, {}),
    "narrow heads": ({"head_dim": 8}, {}, {}),
    "llama3": ({"rope_scaling": {"rope_type": "llama3", **LLAMA3}}, {}, {}),
    "llama3, both names of the type": (
        {"rope_scaling": {"rope_type": "llama3", **LLAMA3}},
        {"rope_scaling": {"rope_type": "llama3", "type": "llama3", **LLAMA3}},
        {},
    ),
    "the type default": ({}, {"rope_scaling": {"rope_type": "default"}}, {}),
    "transformers 5": (
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
        {
            "rope_theta": None,
            "rope_scaling": None,
            "rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **LLAMA3},
        },
        {},
    ),
    "another eps": ({"rms_norm_eps": 1e-2}, {}, {}),
    "all left to the defaults": (
        {"num_key_value_heads": 4},
        dict.fromkeys(
            (
                *("num_key_value_heads", "head_dim", "rope_theta", "rope_scaling", "rms_norm_eps"),
                *("tie_word_embeddings", "attention_bias", "mlp_bias", "hidden_act"),
            )
        ),
        {},
    ),
    "in parts": ({}, {}, {"max_shard_size": "50KB"}),
    "torch.save": ({}, {}, {"safe_serialization": False}),
    "torch.save, in parts": (
        {"tie_word_embeddings": True},
        {},
        {"safe_serialization": False, "max_shard_size": "50KB"},
    ),
    "bfloat16": ({}, {"dtype": "bfloat16"}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_valid_llama_computes_the_same_logits(tmp_path, case):
    """With the overrides that its refusal names, whatever the run's sizes were before."""
    told, edits, save = CASES[case]
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(LlamaConfig(**{**SIZES, **told}, initializer_range=0.2)).eval()
    dtype = getattr(torch, edits.get("dtype", "float32"))
    weights = {name: weight.to(dtype) for name, weight in theirs.state_dict().items()}
    theirs.load_state_dict(weights)
    theirs.save_pretrained(tmp_path / "llama", state_dict=weights, **save)
    file = tmp_path / "llama/config.json"
    fields = json.loads(file.read_text()) | edits
    file.write_text(json.dumps({k: v for k, v in fields.items() if v is not None or k not in edits}))

    with pytest.raises(ValueError) as refused:
        from_llama(tmp_path / "llama", load_config(TOY), tmp_path / "out")
    overrides = shlex.split(re.split("by the overrides ", str(refused.value))[1])
    config = load_config(TOY, overrides)
    from_llama(tmp_path / "llama", config, tmp_path / "out")
    model, _ = load_model(*find_checkpoint(tmp_path / "out"))
    ids = torch.randint(0, 512, (100,), generator=torch.Generator().manual_seed(1))
    cache = KVCache.empty(config.model, 1, len(ids), device=torch.device("cpu"), dtype=torch.float32)
    with torch.no_grad():
        found = model.text_step(ids[None], torch.arange(len(ids))[None], cache)[0]
        expected = theirs(ids[None]).logits[0]
    assert expected.std() > 0.1  # the comparison would be empty at zero
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


REFUSED = {
    "gelu": ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; a text tower computes with 'silu' only"),
    "null activation": ({"hidden_act": None}, "hidden_act is null"),
    "bias of attention": ({"attention_bias": True}, "attention_bias is true"),
    "bias of the feed-forward": ({"mlp_bias": 1}, "mlp_bias is 1"),
    "heads cut off": ({"pruned_heads": {"0": [1]}}, "pruned_heads is {'0': [1]}"),
    "quantised": ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config is"),
    "half-turned heads": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    "half-turned heads, v5": ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "a part of each head"),
    "window": ({"sliding_window": 128}, "sliding_window is 128"),
    "other architecture": ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForCausalLM only"),
    "yarn": ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "is of type 'yarn'"),
    "linear": ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "is of type 'linear'"),
    "dynamic": ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "is of type 'dynamic'"),
    "two types": (
        {"rope_scaling": {"rope_type": "llama3", "type": "yarn", **LLAMA3}},
        "is of type 'llama3' and 'yarn'",
    ),
    "a rule upside down": (
        {"rope_scaling": {"rope_type": "llama3", **LLAMA3, "low_freq_factor": 4.0}},
        "low_freq_factor below high_freq_factor",
    ),
    "half a rule": (
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        "low_freq_factor is None; it must be a number above 0",
    ),
    "two thetas": (
        {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}},
        "gives two values of the rope_theta",
    ),
    "theta in another place": (
        {"rope_scaling": {"rope_type": "default", "rope_theta": 5e5}},
        "gives two values of the rope_theta",
    ),
    "two rules": (
        {"rope_scaling": {"rope_type": "llama3", **LLAMA3}, "rope_parameters": {"rope_type": "default"}},
        "gives two values of the rule for positions",
    ),
    "no object": ({"rope_scaling": 8.0}, "rope_scaling is 8.0; it must be null or an object"),
    "true is no number": (
        {"num_hidden_layers": True},
        "num_hidden_layers is True; it must be a whole number",
    ),
    "64.0 is no whole number": ({"hidden_size": 64.0}, "hidden_size is 64.0; it must be a whole number"),
    "text": ({"vocab_size": "512"}, "vocab_size is '512'; it must be a whole number"),
    "zero": ({"num_attention_heads": 0}, "num_attention_heads is 0"),
    "NaN": ({"rope_theta": float("nan")}, "rope_theta is nan; it must be a number above 0"),
    "infinity": ({"rms_norm_eps": float("inf")}, "rms_norm_eps is inf; it must be a number above 0"),
    "1 is no yes": ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1; it must be true or false"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_text_tower_does_not_compute_is_refused(case):
    fields, sentence = REFUSED[case]
    with pytest.raises(ValueError, match=re.escape(sentence)):
        read_llama_config(SIZES | fields, Path("config.json"))


def test_fields_of_others_are_ignored_and_told(capsys):
    read_llama_config(SIZES | {"is_llama_config": True, "pretraining_tp": 2}, Path("config.json"))
    assert "ignores fields of these names: is_llama_config\n" in capsys.readouterr().out


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 70),
    st.integers(),
    st.floats(),
    st.sampled_from(["silu", "gelu", "llama3", "default", "yarn", "float16", ""]),
    st.text(max_size=4),
    st.lists(st.integers(0, 3), max_size=2),
    st.dictionaries(
        st.sampled_from(["rope_type", "type", "rope_theta", *LLAMA3]), st.floats(0.5, 64.0), max_size=6
    ),
    st.fixed_dictionaries(
        {key: st.one_of(st.floats(1.0, 64.0), st.integers(1, 64)) for key in LLAMA3},
        optional={key: st.sampled_from(["llama3", "default", "yarn"]) for key in ("rope_type", "type")},
    ),
)
FIELDS = st.dictionaries(
    st.sampled_from([*NAMES.values(), *ROPE, *FIXED, *NO_EFFECT.split(), "unheard_of"]), JUNK, max_size=4
)


@given(changes=FIELDS, without=st.sets(st.sampled_from([k for k in SIZES if k != "model_type"]), max_size=3))
def test_any_config_is_refused_in_a_sentence_or_means_what_transformers_reads(changes, without):
    fields = {k: v for k, v in SIZES.items() if k not in without} | changes
    try:
        read = read_llama_config(fields, Path("config.json"))
    except ValueError as error:
        assert str(error).startswith("config.json: ") and "\n" not in str(error) and len(str(error)) < 1000
        return
    theirs = {**fields}
    if isinstance(rope := theirs.pop("rope_parameters", None), dict):  # which transformers 4 does not know
        theirs |= {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
        theirs["rope_scaling"] = rope
    if (
        isinstance(theirs.get("rope_scaling"), dict)
        and not {"type", "rope_type"} & theirs["rope_scaling"].keys()
    ):
        theirs["rope_scaling"] = {**theirs["rope_scaling"], "rope_type": "default"}
    for key in NO_EFFECT.split():  # some of which it checks
        theirs.pop(key, None)
    oracle = LlamaConfig(**copy.deepcopy(theirs))
    model = build(ModelConfig, {"patch": "linear", **read})
    for ours, name in NAMES.items():
        assert (getattr(model, ours) if ours != "head_size" else model.head_dim) == getattr(oracle, name)
    assert oracle.hidden_act in ("silu", "swish") and not oracle.attention_bias and not oracle.mlp_bias
    if model.head_dim % 2 == 0 and model.head_dim < 1000:
        kind = (oracle.rope_scaling or {}).get("rope_type", "default")
        frequencies, scale = ROPE_INIT_FUNCTIONS[kind](oracle, torch.device("cpu"))
        assert scale == 1
        found = inverse_frequencies(model).float()
        torch.testing.assert_close(found, frequencies, rtol=1e-4, atol=0, equal_nan=True)
