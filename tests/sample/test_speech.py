"""What is told of words while they are being said: whole letters, each once."""

from megatv.data.tokenizer import load_tokenizer
from megatv.sample.speech import Speech


def test_a_letter_of_several_tokens_is_told_when_it_is_whole():
    tokenizer = load_tokenizer("toy_world")
    text = "ja, größer €"
    tokens = tokenizer.encode(text)
    assert len(tokens) > len(text)  # the last letters are a token a byte
    speech = Speech([tokenizer.bos], (), len(tokens))
    told = []
    for token in tokens:
        assert speech.hear(token, tokenizer)
        told.append(speech.news(tokenizer))
    assert "".join(told) == text and "" in told
    assert not any("\ufffd" in news for news in told)


def test_words_that_surely_stand_there_are_no_news():
    tokenizer = load_tokenizer("toy_world")
    known, new = tokenizer.encode("(w). 2, 0,"), tokenizer.encode(" 1,")
    speech = Speech([tokenizer.bof], tuple(known), 9)
    assert speech.flush() == [tokenizer.bof, *known]
    for token in new:
        speech.hear(token, tokenizer)
    assert speech.news(tokenizer) == " 1," and speech.news(tokenizer) == ""
    assert speech.flush() == new and speech.flush() == []
