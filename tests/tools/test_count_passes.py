"""Passes over action lines, counted by hand for the toy world's tokenizer."""

import json


def test_passes_over_action_lines_are_counted(python, tmp_path):
    """The toy world's tokens are whole fields: one pick each, and one of what ends the line."""
    out = tmp_path / "words.json"
    python("tools/count_passes.py", "--out", out)
    one, four = json.loads(out.read_text()).values()
    assert (one["tokens"], one["passes"], one["passes_with_grammar"]) == (5, 6, 6)
    # newlines are tokens; BOF is certain after the fourth line
    assert (four["tokens"], four["passes"], four["passes_with_grammar"]) == (23, 24, 23)
