"""Configs: strict keys and types, cross-checks with a remedy, exact round trips, no other exception."""

import copy
import dataclasses
import re
import typing
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from megatv_kernels.attention import BACKENDS

from megatv.checks import ABOVE_ZERO, AT_LEAST_ONE, AT_LEAST_ZERO, PROBABILITIES
from megatv.config import Config, config_from_dict, config_to_dict, load_config, save_config

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
MINIMAL: dict[str, dict] = {
    "run": {"dir": "runs/x", "steps": 10},
    "video": {"width": 32, "height": 48, "groups": 2},
    "codec": {"kind": "dct"},
    "tokenizer": {"path": "toy_world"},
    "data": {"train": "data/x"},
    "sequence": {"mode": "tv2tv", "context_tokens": 500},
    "model": {
        "layers": 2,
        "width": 64,
        "ffn": 96,
        "heads": 4,
        "kv_heads": 2,
        "vocab": 512,
        "tied_embeddings": False,
        "rope_scaling": {"factor": 8},
    },
    "batch": {"examples": 4},
    "checkpoint": {"every": 5},
}


def changed(dotted, value, tree=MINIMAL):
    """A copy of `tree` with one dotted key set."""
    tree = copy.deepcopy(tree)
    node = tree
    *sections, leaf = dotted.split(".")
    for section in sections:
        node = node.setdefault(section, {})
    node[leaf] = value
    return tree


def leaves(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


FULL = config_to_dict(config_from_dict(MINIMAL))
LEAVES = list(leaves(FULL))


def test_minimal_config_has_documented_defaults():
    config = config_from_dict(MINIMAL)
    assert (config.optim.lr, config.optim.warmup_steps, config.sample.steps) == (3e-4, 4000, 50)
    assert (config.precision, config.parallel.zero, config.data.val) == ("fp32", 1, None)
    assert repr(config.model.rope_scaling and config.model.rope_scaling.factor) == "8.0"


def test_derived_sizes_by_hand():
    config = config_from_dict(MINIMAL)
    assert config.derived() == {
        "latents": 26,
        "tokens_per_chunk": 2 * 3,
        "chunks_per_row": 26,
        "text_rows": 500 - 2 * 26 * 6,
        "text_rows_per_example": 188,
        "rows_per_step": 4,
    }
    assert (config.latent_height, config.latent_width, config.model.head_dim) == (6, 4, 16)


def test_accumulation_shares_rows_equally():
    config = config_from_dict(MINIMAL)
    assert [config.accumulation(dp) for dp in (1, 2, 4)] == [4, 2, 1]
    sentence = r"which 3 data-parallel ranks cannot share equally: set batch.examples to a multiple of 3$"
    with pytest.raises(ValueError, match=sentence):
        config.accumulation(3)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_shipped_configs_survive_the_round_trip(path, tmp_path):
    config = load_config(path)
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


def test_overrides_are_yaml_and_the_last_wins():
    config = load_config(
        CONFIGS[-1],
        [
            "optim.lr=3e-4",
            "run.steps=7",
            "optim.betas=[0.5, 0.75]",
            "sample.cfg=2",
            "optim.ema=null",
            "run.steps=8",
        ],
    )
    assert (config.optim.lr, config.optim.betas, config.sample.cfg) == (3e-4, (0.5, 0.75), 2.0)
    assert config.optim.ema is None and config.run.steps == 8


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("steps", "must look like section.key=value"),
        ("=3", "must look like section.key=value"),
        ("run..steps=3", "must look like section.key=value"),
        ("run.steps=[", "override 'run.steps=[': not valid YAML"),
        ("run.dir=2026-99-99", "not valid YAML"),
        ("run.steps.deep=3", "'steps' is a value, not a section"),
        ("run.stpes=3", "unknown key 'run.stpes'; did you mean 'run.steps'?"),
    ],
)
def test_bad_overrides(override, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        load_config(CONFIGS[-1], [override])


@pytest.mark.parametrize(
    ("dotted", "value", "sentence"),
    [
        ("optm", {}, "unknown key 'optm'; did you mean 'optim'?"),
        ("optim.lrr", 1, "unknown key 'optim.lrr'; did you mean 'optim.lr'?"),
        ("model.rope_scaling.facto", 1, "did you mean 'model.rope_scaling.factor'?"),
        ("warmup_steps", 3, "unknown key 'warmup_steps'; did you mean 'optim.warmup_steps'?"),
        ("codec.zzzz", 3, "unknown key 'codec.zzzz'; known keys: kind, path"),
        ("optim", None, "optim must be a section with keys, got None"),
        ("optim.lr", "fast", "optim.lr must be a finite number, got 'fast'"),
        ("optim.lr", float("nan"), "optim.lr must be a finite number, got nan"),
        ("optim.lr", True, "optim.lr must be a finite number, got True"),
        ("run.steps", 1000.0, "run.steps must be a whole number, got 1000.0"),
        ("run.steps", True, "run.steps must be a whole number, got True"),
        ("run.dir", 3, "run.dir must be text, got 3"),
        ("log.wandb", "yes", "log.wandb must be true or false, got 'yes'"),
        ("parallel.zero", 1.0, "parallel.zero is 1.0: choose one of 0, 1, 2, 3"),
        ("parallel.zero", True, "parallel.zero is True: choose one of 0, 1, 2, 3"),
        ("precision", "fp16", "precision is 'fp16': choose one of fp32, bf16"),
        ("optim.betas", [0.9], "optim.betas must be a list of 2 values, got [0.9]"),
        ("optim.betas", [0.9, "x"], "optim.betas[1] must be a finite number, got 'x'"),
        ("optim.betas", [0.9, 1.0], "optim.betas is [0.9, 1.0]"),
        ("video.width", 40, "video.width is 40: it must be a multiple of 16, such as 32"),
        ("model.heads", 3, "model.width 64 over model.heads 3"),
        ("model.kv_heads", 3, "model.heads 4 must be a multiple of model.kv_heads 3"),
        ("model.unet_channels", [0, 8], "model.unet_channels is [0, 8]"),
        ("model.rope_scaling.low_freq_factor", 4.0, "model.rope_scaling needs"),
        (
            "sequence.examples_per_row",
            3,
            "batch.examples 4 must be a multiple of sequence.examples_per_row 3",
        ),
        ("sequence.context_tokens", 365, "make it at least 366"),
        ("parallel.tp", 3, "model.heads 4 must be a multiple of parallel.tp 3"),
        ("parallel.tp", 4, "model.kv_heads 2 must be a multiple of parallel.tp 4"),
        ("parallel.cp", 3, "model.heads 4 must be a multiple of parallel.tp 1 x parallel.cp 3"),
        (
            "parallel",
            {"sequence_parallel": True},
            "splits rows over parallel.tp, which is 1: set it to false",
        ),
        ("parallel.activation_checkpointing", True, "choose one of none, selective, full, offloaded"),
        ("parallel.pp", 3, "parallel.pp 3 stages need at least as many layers, model.layers is 2"),
        ("parallel", {"pp": 2, "zero": 2}, "set parallel.zero to 0 or 1"),
        ("run.dir", "", "run.dir is empty"),
        ("codec", {"kind": "wan"}, "codec.kind wan needs codec.path"),
        ("log.val_every", 5, "log.val_every 5 needs data.val"),
        ("optim", {"lr": 1e-6}, "optim.min_lr 1.5e-05 must not be above optim.lr 1e-06"),
        ("optim.ema", 1.0, "optim.ema is 1.0"),
        ("objective", {"text_weight": 0, "video_weight": 0}, "nothing to learn"),
    ],
)
def test_faults_are_sentences(dotted, value, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        config_from_dict(changed(dotted, value))


def test_ema_is_refused_under_zero_3():
    tree = changed("optim.ema", 0.99, changed("parallel.zero", 3))
    with pytest.raises(ValueError, match=re.escape("optim.ema 0.99 needs parallel.zero <= 2")):
        config_from_dict(tree)


def test_a_grammar_of_actions_is_refused_for_captions():
    tree = changed("sample.grammar", "actions", changed("sequence.think2v", "detailed_caption"))
    assert config_from_dict(tree).sample.grammar == "actions"
    tree["sequence"]["mode"] = "think2v"
    with pytest.raises(ValueError, match="actions is for action lines"):
        config_from_dict(tree)


@pytest.mark.parametrize("missing", ["run", "run.dir", "model.layers", "sequence.mode"])
def test_missing_keys_are_named(missing):
    tree = copy.deepcopy(MINIMAL)
    section, _, key = missing.partition(".")
    if key:
        del tree[section][key]
    else:
        del tree[section]
    with pytest.raises(ValueError, match=f"key '{missing}' is missing"):
        config_from_dict(tree)


LIMITS = (
    [(key, 0, 1) for key in AT_LEAST_ONE.split()]
    + [(key, -1, 0) for key in AT_LEAST_ZERO.split()]
    + [(key, 0, None) for key in ABOVE_ZERO.split()]
    + [(key, value, None) for key in PROBABILITIES.split() for value in (-0.1, 1.1)]
)


@pytest.mark.parametrize(("key", "bad", "good"), LIMITS)
def test_ranges_end_where_they_say(key, bad, good):
    with pytest.raises(ValueError, match=f"{key} is {bad}"):
        config_from_dict(changed(key, bad))
    if good is not None:
        try:
            config_from_dict(changed(key, good))
        except ValueError as error:  # another rule may object, not this one
            assert f"{key} is {good}: it must" not in str(error) or "multiple" in str(error)


def test_every_number_has_a_range():
    """A new number in the config must be listed in a range, or here with the rule that bounds it."""
    elsewhere = {
        "sequence.timestep_mean",  # any number
        "parallel.zero",  # a choice
        "optim.ema",
        "optim.betas",
        "model.unet_channels",
        *(f"model.rope_scaling.{name}" for name in ("factor", "low_freq_factor", "high_freq_factor")),
        "model.rope_scaling.original_context",
    }
    ranged = set(f"{AT_LEAST_ONE} {AT_LEAST_ZERO} {ABOVE_ZERO} {PROBABILITIES}".split())
    numbers = {
        key
        for key in LEAVES
        if not isinstance(value := _leaf(key), (bool, str)) and (value is not None or key == "optim.ema")
    }
    assert numbers - {"attention", "precision"} == ranged | elsewhere


def _leaf(dotted):
    node = FULL
    for part in dotted.split("."):
        node = node[part]
    return node


def test_attention_choices_are_the_kernels():
    assert set(typing.get_args(typing.get_type_hints(Config)["attention"])) == {"auto", *BACKENDS}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "expected sections"),
        ("- a\n- b", "expected sections"),
        ("run: {dir: x\nmodel: 3", "not valid YAML: line 2"),
        ("run: {dir: x, dir: y}", "key 'dir' is given twice"),
        ("run: {}\nmodel: {}\nrun: {}", "line 3: key 'run' is given twice"),
        ("run: \x00", "not valid YAML"),
        ("? [a]\n: 3", "not valid YAML"),
        ("? {a: 1}\n: 3", "not valid YAML"),
    ],
)
def test_files_that_are_no_config(tmp_path, text, sentence):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        load_config(path)
    assert str(caught.value).startswith(str(path))


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name, sentence in {
        "absent.yaml": "No such file",
        "binary.yaml": "is not text",
        ".": "directory",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            load_config(tmp_path / name)


def test_numbers_with_exponents_are_numbers(tmp_path):
    tree = yaml.safe_dump(MINIMAL) + "optim: {lr: 3e-4, min_lr: 1E-5, eps: +2e-8, weight_decay: 1.e-1}\n"
    (tmp_path / "a.yaml").write_text(tree)
    optim = load_config(tmp_path / "a.yaml").optim
    assert (optim.lr, optim.min_lr, optim.eps, optim.weight_decay) == (3e-4, 1e-5, 2e-8, 0.1)


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 5000),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.one_of(st.integers(-2, 9), st.text(max_size=2)), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@given(
    st.dictionaries(
        st.sampled_from([*LEAVES, *FULL, "model.rope_scaling", "nope", "run.nope"]), JUNK, max_size=3
    )
)
def test_any_tree_is_a_config_that_round_trips_or_a_sentence(edits):
    tree = FULL
    for key, value in edits.items():
        try:
            tree = changed(key, value, tree)
        except (AttributeError, TypeError):  # an earlier edit made the section a plain value
            continue
    try:
        config = config_from_dict(tree)
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert config_from_dict(config_to_dict(config)) == config


@given(
    st.tuples(st.integers(1, 8), st.integers(1, 8), st.integers(1, 3), st.integers(1, 3), st.integers(0, 100))
)
def test_a_row_is_text_and_two_copies_of_every_chunk(sizes):
    across, down, groups, examples, spare = sizes
    chunks = 13 * groups * examples
    context = 2 * chunks * across * down + examples * (2 * 13 * groups + 2) + spare
    base = config_from_dict(MINIMAL)
    config = dataclasses.replace(
        base,
        video=dataclasses.replace(base.video, width=16 * across, height=16 * down, groups=groups),
        sequence=dataclasses.replace(base.sequence, context_tokens=context, examples_per_row=examples),
        batch=dataclasses.replace(base.batch, examples=6 * examples),
    )
    assert config.text_rows + 2 * config.chunks_per_row * config.tokens_per_chunk == context
    assert config.text_rows_per_example * examples <= config.text_rows
    assert config.text_rows_per_example >= 2 * config.latents + 2
    assert config.accumulation(6) == 1


@given(
    lr=st.floats(2e-5, 1.0),
    steps=st.integers(1, 10**9),
    folder=st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=20),
)
def test_yaml_keeps_every_value(tmp_path_factory, lr, steps, folder):
    path = tmp_path_factory.mktemp("yaml") / "config.yaml"
    base = config_from_dict(changed("optim.lr", lr))
    config = dataclasses.replace(base, run=dataclasses.replace(base.run, dir=folder, steps=steps))
    save_config(config, path)
    assert load_config(path) == config
