import base64
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatv.choices import TOY_WORLD_FILE
from megatv.data.tokenizer import LLAMA3_PATTERN, Tokenizer, load_tokenizer, read_ranks
from megatv.data.toy_world import ACTIONS, META_PROMPT, simulate, words

ROOT = Path(__file__).parents[2]
LLAMA3 = ROOT / "../shared/llama3/tokenizer.model"


@pytest.fixture(scope="module")
def toy():
    return load_tokenizer("toy_world")


@pytest.fixture(scope="module")
def llama3():
    if not LLAMA3.exists():
        pytest.skip(f"{LLAMA3} is absent: the Llama-3 tokenizer is not ours to ship")
    return load_tokenizer(str(LLAMA3))


def test_toy_ids(toy):
    assert (toy.bos, toy.eos, toy.bof, toy.eof, toy.vocab_size) == (322, 323, 324, 325, 326)


def test_toy_lines_are_short(toy):
    """A line is five tokens, the keys and four numbers; a sequence of one group fits in 104 text rows."""
    counts = [len(toy.encode(words(action))) for action in ACTIONS]
    assert set(counts) == {5}
    assert len(toy.encode(META_PROMPT)) == 7
    assert [toy.decode([i]) for i in toy.encode("(w, space). -2, 0, 1, 0.")] == [
        "(w, space).",
        " -2,",
        " 0,",
        " 1,",
        " 0.",
    ]
    markers = 2 + 2 * 13
    longest = max(sum(len(toy.encode(words(a))) for a in simulate(seed).actions) for seed in range(100))
    assert markers + 7 + longest <= 104


@given(st.text())
def test_any_text_comes_back(text):
    toy = load_tokenizer("toy_world")
    assert toy.decode(toy.encode(text)) == text


def test_text_that_looks_special_is_plain_text(toy):
    for text in ("<|bof|>", "a<|eos|>b"):
        ids = toy.encode(text)
        assert max(ids) < toy.bos and toy.decode(ids) == text


@pytest.mark.parametrize("blank", [" ", "\t", "\u3000", "\n", "x"])
def test_texts_that_end_the_library_are_refused(toy, blank):
    """Of a million blanks in Llama-3's pattern, tiktoken makes an error that `except Exception` lets pass."""
    llama = Tokenizer(read_ranks(TOY_WORLD_FILE), LLAMA3_PATTERN)
    for tokenizer in (toy, llama):
        with pytest.raises(ValueError, match="a text of 1,100,001 characters; give at most 524,288"):
            tokenizer.encode(blank * 1_100_000 + "x")
        text = blank * 524_287 + "x"
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_show_in_decoded_text(toy):
    ids = [toy.bos, *toy.encode("(w)."), toy.bof, toy.eof, toy.eos]
    assert toy.decode(ids) == "<|bos|>(w).<|bof|><|eof|><|eos|>"


def test_tokenizers_travel_to_worker_processes(toy):
    again = pickle.loads(pickle.dumps(toy))
    assert again.encode(META_PROMPT) == toy.encode(META_PROMPT) and again.bof == toy.bof


def test_the_tool_makes_the_shipped_file(python, tmp_path):
    pytest.importorskip("tokenizers")
    out = tmp_path / "toy.tiktoken"
    python("tools/train_tokenizer.py", "--out", out)
    assert out.read_bytes() == TOY_WORLD_FILE.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["toy.tiktoken"]


def test_the_tool_names_a_missing_folder(python, tmp_path):
    done = python("tools/train_tokenizer.py", "--out", tmp_path / "no/toy.tiktoken", check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "create it first" in done.stderr


def test_llama3_ids(llama3):
    assert (llama3.bos, llama3.eos, llama3.bof, llama3.eof) == (128000, 128001, 128002, 128003)
    assert llama3.vocab_size == 128256
    # llama-models `llama3/tests/api/test_tokenizer.py`
    assert llama3.encode("This is a test sentence.") == [2028, 374, 264, 1296, 11914, 13]
    assert llama3.encode("<|begin_of_text|>")[0] < 128000
    assert llama3.decode([128002, 128003]) == "<|bof|><|eof|>"
    assert llama3.decode([128255])


def test_llama3_round_trip(llama3):
    for text in ("", "naïve 雪 🙂\r\n\t x", "a" * 200_000, " " * 200_000, "(w, space). -10, 4, 1, 0."):
        assert llama3.decode(llama3.encode(text)) == text


def test_llama3_counts(llama3):
    """Four no-op lines joined by newlines take 56 tokens, the paper's evaluation meta-prompt 25."""
    assert len(llama3.encode("\n".join(["(.). 0, 0, 0, 0."] * 4))) == 56
    prompt = (
        "A brief gameplay clip from the iconic Dust 2 map, showcasing classic Counter-Strike tactical combat "
        "in the legendary desert setting."
    )
    assert len(llama3.encode(prompt)) == 25


def toy_lines():
    return TOY_WORLD_FILE.read_bytes().splitlines()


def write(tmp_path, lines):
    path = tmp_path / "damaged.tiktoken"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return str(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.model: cannot be read .*tokenizer\.model"):
        load_tokenizer(str(tmp_path / "none.model"))


@pytest.mark.parametrize("line", [b"!!! 7", b"AA==", b"QQ== x", b"QQ== 1 2", b"", b"\xff\xfe 3"])
def test_a_corrupt_line_is_named(tmp_path, line):
    lines = toy_lines()
    lines[7] = line
    with pytest.raises(ValueError, match=r"damaged\.tiktoken, line 8: expected"):
        load_tokenizer(write(tmp_path, lines))


def test_a_rank_given_twice_is_named(tmp_path):
    lines = toy_lines()
    lines[9] = lines[9].split()[0] + b" 4"
    with pytest.raises(ValueError, match="line 10: rank 4 was given on line 5"):
        load_tokenizer(write(tmp_path, lines))


def test_a_token_given_twice_is_named(tmp_path):
    lines = [*toy_lines(), base64.b64encode(b"\x04") + b" 322"]
    with pytest.raises(ValueError, match="line 323: this token was given on line 5"):
        load_tokenizer(write(tmp_path, lines))


def test_an_absent_rank_is_named(tmp_path):
    lines = toy_lines()
    with pytest.raises(ValueError, match="rank 300 is absent"):
        load_tokenizer(write(tmp_path, lines[:300] + lines[301:]))


def test_an_empty_file_is_refused(tmp_path):
    path = tmp_path / "empty.tiktoken"
    path.touch()
    with pytest.raises(ValueError, match="single byte 0x00"):
        load_tokenizer(str(path))


def test_a_model_must_have_a_row_for_every_token():
    assert load_tokenizer("toy_world", 326).vocab_size == 326
    with pytest.raises(
        ValueError, match=r"model\.vocab is 325, and tokenizer\.path toy_world has 326 tokens"
    ):
        load_tokenizer("toy_world", 325)


def test_a_token_that_is_a_book_is_refused(tmp_path):
    """A few of them would make a text of gigabytes."""
    lines = TOY_WORLD_FILE.read_bytes().splitlines()
    for size in (512, 513):
        token = base64.b64encode(b"a" * size)
        (tmp_path / "a.tiktoken").write_bytes(b"\n".join([*lines, token + b" %d" % len(lines)]))
        if size == 512:
            assert len(read_ranks(tmp_path / "a.tiktoken")) == len(lines) + 1
        else:
            with pytest.raises(ValueError, match=r"a token has 513 bytes, and 512 are the"):
                read_ranks(tmp_path / "a.tiktoken")
