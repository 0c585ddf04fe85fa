"""YAML of strangers: texts that would fill the machine, or end Python's reader, are one sentence."""

import pytest

from megatv.yaml_tree import parse

LEVELS = "bcdefghi"


def bomb(first, shape):
    """Nine levels, each of ten aliases of the one above it: a billion values in 400 bytes."""
    lines = [f"a: &a {first}"]
    for above, name in zip("a" + LEVELS, LEVELS, strict=False):
        lines.append(f"{name}: &{name} {shape.replace('X', ', '.join([f'*{above}'] * 10))}")
    return "\n".join(lines)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (bomb("[x, x]", "[X]"), "its aliases stand for more than 100000 values"),
        (bomb("{x: 1}", "{<<: [X]}"), "its aliases stand for more than 100000 values"),
        ("a: &a [*a]", "its aliases stand for more than"),
        ("[" * 5000, "nested too deeply"),
        ("? " * 5000, "nested too deeply"),
        ("a: !!bool x", "a value is not what its tag"),
        ("a: !!timestamp x", "a value is not what its tag"),
        ("a: !!int ''", "a value is not what its tag"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
    ],
)
def test_a_hostile_text_is_one_sentence(text, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        parse(text, "study.yaml")
    assert str(error.value).startswith("study.yaml: not valid YAML: ") and "\n" not in str(error.value)


def test_aliases_of_ordinary_size_stay():
    assert parse("a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}", "t") == {
        "a": {"b": 1},
        "c": {"b": 1},
        "d": {"b": 1, "e": 2},
    }
