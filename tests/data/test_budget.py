"""More words than rows: whole trailing chunks go, with their words, and it is said how many."""

from pathlib import Path

import numpy as np
import pytest

from megatv.config import load_config
from megatv.data.budget import TextBudget
from megatv.data.csgo import META_PROMPT, caption_actions
from megatv.data.csgo_actions import KEYS, GameAction
from megatv.data.describe import runs
from megatv.data.sequence import build_sequence
from megatv.data.tokenizer import load_tokenizer
from megatv.types import Example

ROOT = Path(__file__).parents[2]
LLAMA3 = ROOT / "../shared/llama3/tokenizer.model"
TOKENIZER = str(LLAMA3) if LLAMA3.is_file() else "toy_world"
EVERYTHING = GameAction(KEYS, mouse_x=-1000, mouse_y=-200, left=1, right=1)


def frantic(frames=98, ends=True, action=EVERYTHING):
    """Two groups in which every key is held and the mouse flies, as the longest words that there are."""
    latents = np.zeros((26, 16, 24, 40), np.float32)
    return Example("frantic", latents, caption_actions([action] * frames), META_PROMPT, "", 26, ends)


@pytest.mark.parametrize("mode", ["tv2tv", "think2v"])
@pytest.mark.parametrize("name", ["3b_csgo", "8b_sports"])
def test_all_keys_held_cost_whole_chunks_at_the_papers_geometry(name, mode):
    config = load_config(
        ROOT / f"configs/{name}.yaml",
        [f"tokenizer.path={TOKENIZER}", f"sequence.mode={mode}", "sequence.think2v=actions"],
    )
    tokenizer, example = load_tokenizer(TOKENIZER), frantic()
    sequence = build_sequence(example, tokenizer, config, seed=0, epoch=0, train=False)
    kept = len(sequence.chunk_loss)
    assert 1 <= kept < 26 and len(sequence.text_ids) <= config.text_rows_per_example
    assert len(sequence.noisy) == len(sequence.clean_positions) == len(sequence.chunk_sees_text) == kept

    said = [
        tokenizer.decode([i for i in sequence.text_ids[rows] if i < tokenizer.bos]) for rows in runs(sequence)
    ]
    before = [caption.text for caption in example.captions]
    words = before[:kept] if mode == "tv2tv" else ["\n".join(before[:kept]), *[""] * (kept - 1)]
    words[0] = f"{META_PROMPT}\n{words[0]}"
    assert said == [*words, ""]
    assert tokenizer.eos not in sequence.text_ids  # the clip goes on where the sequence is cut
    longer = [*before[: kept + 1]] if mode == "tv2tv" else ["\n".join(before[: kept + 1])]
    rows = sum(len(tokenizer.encode(text)) for text in [f"{META_PROMPT}\n", *longer]) + 1 + 2 * (kept + 1)
    assert rows > config.text_rows_per_example  # not one chunk more would have fitted

    budget = TextBudget(config)
    budget.count(frantic(action=GameAction()) if name == "3b_csgo" else example)
    budget.count(example)
    share = "1 of 2 examples (50.00%)" if name == "3b_csgo" else "2 of 2 examples (100.00%)"
    assert budget.report().startswith(f"{share}, frantic the first, have words for more than the")
    lost = (26 - kept) * (1 if name == "3b_csgo" else 2)
    assert f"training leaves out {lost} of 52 chunks ({lost / 52:.2%})" in budget.report()


def test_what_fits_is_said_too_and_what_never_fits_is_refused():
    config = load_config(ROOT / "configs/3b_csgo.yaml", ["tokenizer.path=toy_world"])
    budget = TextBudget(config)
    budget.count(frantic(action=GameAction()))
    assert budget.report() == "the words of all 1 examples fit the 2880 text rows of an example"
    small = load_config(
        ROOT / "configs/3b_csgo.yaml", ["tokenizer.path=toy_world", "sequence.context_tokens=12540"]
    )
    with pytest.raises(ValueError, match=r"sample frantic: the text up to its first chunk takes"):
        TextBudget(small).count(frantic())
