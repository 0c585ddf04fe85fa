"""Hugging Face's config.json of a Llama as a run's `model` section, and back: all that decides the logits.

Every field of transformers' LlamaConfig is translated (NAMES and, for rotary positions, ROPE), fixed since a
text tower computes in one way (FIXED), or without effect on the logits (NO_EFFECT).
`tests/model/test_llama_config.py` walks them, so that a new one must be sorted in. Fields that LlamaConfig
does not have are ignored, as LlamaForCausalLM ignores them, and told; but those that transformers reads of
any model are in FIXED too.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatv.config import ModelConfig, config_to_dict
from megatv.log import say
from megatv.schema import short

NAMES = {
    "width": "hidden_size",
    "ffn": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_size": "head_dim",
    "vocab": "vocab_size",
    "tied_embeddings": "tie_word_embeddings",
    "norm_eps": "rms_norm_eps",
}
"""Key of `model` -> field of config.json."""
DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}
"""LlamaConfig's, of fields that a file may leave out; num_key_value_heads and head_dim follow from others."""
ROPE = ("rope_theta", "rope_scaling", "rope_parameters")
"""Rotary positions: theta and the rule apart, or, since transformers 5, both in `rope_parameters`."""
LLAMA3 = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_context": "original_max_position_embeddings",
}
"""Key of `model.rope_scaling` -> Hugging Face's, of the rule of rope_type `llama3`."""
FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "pruned_heads": ({}, None),
    # not of LlamaConfig, but read of any model: by rotary tables, by caches of keys and values, by quantisers
    "partial_rotary_factor": (1.0,),
    **dict.fromkeys(("sliding_window", "layer_types", "attention_chunk_size"), (None,)),
    **dict.fromkeys(("quantization_config", "compression_config"), (None,)),
}
"""Field -> its values with which a text tower computes the same; the first is LlamaConfig's default."""
NO_EFFECT = (
    # the longest context of the training, of which positions without a rule and by llama3's are independent
    "max_position_embeddings "
    # of training, the layout of the computation, and what is returned
    "attention_dropout initializer_range pretraining_tp use_cache chunk_size_feed_forward dtype torch_dtype "
    "use_bfloat16 torchscript tf_legacy_loss output_attentions output_hidden_states output_scores "
    "return_dict return_dict_in_generate "
    # of encoders, decoders and classifiers, none of which is a LlamaForCausalLM
    "add_cross_attention cross_attention_hidden_size is_decoder is_encoder_decoder tie_encoder_decoder "
    "decoder_start_token_id finetuning_task id2label label2id num_labels problem_type "
    "task_specific_params "
    # names, and ids of tokens
    "model_type architectures _name_or_path transformers_version tokenizer_class prefix bos_token_id "
    "eos_token_id pad_token_id sep_token_id "
    # of generation
    "bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping "
    "encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id "
    "length_penalty max_length min_length no_repeat_ngram_size num_beam_groups num_beams "
    "num_return_sequences remove_invalid_values repetition_penalty suppress_tokens temperature top_k top_p "
    "typical_p"
)
"""Fields that do not change the logits of a LlamaForCausalLM in evaluation (`_check_kind` reads two)."""


def llama_config(model: ModelConfig) -> dict[str, Any]:
    """The fields of Hugging Face's config.json that the text tower determines."""
    rule = model.rope_scaling
    return {
        **{theirs: getattr(model, ours) for ours, theirs in NAMES.items()},
        "head_dim": model.head_dim,
        "rope_theta": model.rope_theta,
        "rope_scaling": rule
        and {"rope_type": "llama3", **{theirs: getattr(rule, ours) for ours, theirs in LLAMA3.items()}},
    }


def check_llama_config(fields: Mapping[str, Any], model: ModelConfig, where: Path) -> None:
    """Refuse (ValueError) a config.json, read from `where`, that computes something else than `model` does.

    The message names every key of the run's `model` that differs, and the overrides that make them agree.
    """
    asked = read_llama_config(fields, where)
    ours = config_to_dict(model)
    if ours["head_size"] == model.width // model.heads:
        ours["head_size"] = None
    differing = [key for key, value in asked.items() if ours[key] != value]
    if differing:
        facts = "; ".join(
            f"{NAMES.get(key, key)} is {asked[key]}, but the run's `model` section says {ours[key]}"
            for key in differing
        )
        overrides = " ".join(shlex.quote(f"model.{key}={json.dumps(asked[key])}") for key in differing)
        raise ValueError(f"{where}: {facts}; make the two agree, by the overrides {overrides}")


def read_llama_config(fields: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """The keys of a run's `model` that a config.json, read from `where`, determines, and their values.

    Fields that it leaves out have LlamaConfig's defaults. Raises ValueError, with the field, for what a text
    tower does not compute.
    """
    _check_kind(fields, where)
    for key, allowed in FIXED.items():
        found = fields.get(key, allowed[0])
        if not any(_same(found, value) for value in allowed):
            raise ValueError(
                f"{where}: {key} is {_shown(found)}; a text tower computes with {_shown(allowed[0])} "
                "only, and otherwise its words would be others: give a Llama with that"
            )
    sizes = ("width", "ffn", "layers", "heads", "vocab")
    whole = {key: _number(fields, NAMES[key], where, int) for key in sizes}
    heads, width = whole["heads"], whole["width"]
    kv_heads, size = (fields.get(NAMES[key]) for key in ("kv_heads", "head_size"))
    kv_heads = heads if kv_heads is None else _number(fields, NAMES["kv_heads"], where, int)
    size = width // heads if size is None else _number(fields, NAMES["head_size"], where, int)
    tied = fields.get("tie_word_embeddings", DEFAULTS["tie_word_embeddings"])
    if type(tied) is not bool:
        raise ValueError(f"{where}: tie_word_embeddings is {short(tied)}; it must be true or false")
    theta, rule = _rope(fields, where)
    known = {*NAMES.values(), *ROPE, *FIXED, *NO_EFFECT.split()}
    if strange := sorted(key for key in fields if key not in known):
        names = ", ".join(key[:40] for key in strange[:8]) + (" ..." if len(strange) > 8 else "")
        say(f"{where}: ignored, since LlamaForCausalLM ignores fields of these names: {names}")
    return {
        **whole,
        "kv_heads": kv_heads,
        "head_size": None if size == width // heads else size,
        "tied_embeddings": tied,
        "norm_eps": float(_number(fields, "rms_norm_eps", where, float)),
        "rope_theta": theta,
        "rope_scaling": rule,
    }


def _check_kind(fields: Mapping[str, Any], where: Path) -> None:
    if fields.get("model_type") != "llama":
        kind = fields.get("model_type")
        raise ValueError(f"{where}: model_type is {short(kind)}; a text tower takes a Llama only")
    made = fields.get("architectures")
    if made not in (None, ["LlamaForCausalLM"], ["LLaMAForCausalLM"]):  # the last by Llama's first converters
        raise ValueError(f"{where}: architectures is {short(made)}; a text tower takes LlamaForCausalLM only")


def _rope(fields: Mapping[str, Any], where: Path) -> tuple[float, dict[str, Any] | None]:
    """theta, and the values of `model.rope_scaling`. Two spellings in one file must say the same."""
    thetas, rules = [], []
    if "rope_theta" in fields:
        thetas.append(_number(fields, "rope_theta", where, float))
    for key in ("rope_scaling", "rope_parameters"):
        rope = fields.get(key)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            raise ValueError(f"{where}: {key} is {short(rope)}; it must be null or an object")
        if "rope_theta" in rope:  # of `rope_scaling`, transformers 5 reads it and 4 does not
            thetas += [_number(fields, "rope_theta", where, float)] if key == "rope_scaling" else []
            thetas.append(_number(rope, "rope_theta", where, float))
        if not _same(rope.get("partial_rotary_factor", 1.0), 1.0):
            raise ValueError(f"{where}: {key} turns a part of each head only; a text tower turns all of it")
        rules.append(_rule(rope, f"{where}: {key}"))
    for what, found in (("rope_theta", thetas), ("rule for positions", rules)):
        if any(value != found[0] for value in found):
            raise ValueError(f"{where}: gives two values of the {what}; leave the wrong one out")
    theta = float(thetas[0]) if thetas else float(DEFAULTS["rope_theta"])
    if theta < 1:
        raise ValueError(f"{where}: rope_theta is {theta}; it must be at least 1")
    return theta, rules[0] if rules else None


def _rule(rope: Mapping[str, Any], where: str) -> dict[str, Any] | None:
    """`model.rope_scaling` of one object with a `rope_type`, which older files call `type`."""
    kinds = {short(rope[key]) for key in ("rope_type", "type") if key in rope} or {"'default'"}
    if kinds == {"'default'"}:
        return None
    if kinds != {"'llama3'"}:
        raise ValueError(
            f"{where} is of type {' and '.join(sorted(kinds))}; a text tower knows 'default' and 'llama3' "
            "only, and with another rule its words would be others: give a Llama with one of these"
        )
    kinds_of = {"original_context": int}
    numbers = {
        ours: _number(rope, theirs, where, kinds_of.get(ours, float)) for ours, theirs in LLAMA3.items()
    }
    if numbers["factor"] < 1 or numbers["low_freq_factor"] >= numbers["high_freq_factor"]:
        raise ValueError(
            f"{where} must have a factor of at least 1, and low_freq_factor below high_freq_factor"
        )
    return {ours: kinds_of.get(ours, float)(value) for ours, value in numbers.items()}


def _number(fields: Mapping[str, Any], key: str, where: Path | str, kind: type) -> Any:
    """A field that must be a number above 0, a whole one for `int`."""
    value = fields.get(key, DEFAULTS.get(key))
    right = type(value) is int or (kind is float and type(value) is float)
    if not right or not 0 < value < 2**63:
        what = "a whole number" if kind is int else "a number"
        raise ValueError(f"{where}: {key} is {short(value)}; it must be {what} above 0")
    return value


def _shown(value: Any) -> str:
    """A value as JSON has it, cut short."""
    return json.dumps(value) if value is None or isinstance(value, bool) else short(value)


def _same(value: Any, allowed: Any) -> bool:
    """Equal, and not by `True == 1`."""
    return value == allowed and isinstance(value, bool) == isinstance(allowed, bool)
