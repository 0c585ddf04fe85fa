"""The answer is taken only where it cannot be mistaken: after all thoughts, and with no rival beside it."""

import contextlib
import json

import pytest

from megatv.curate.answers import json_object, quality_score, segment_captions

DRAFT, FINAL = '{"caption": "Draft."}', '{"caption": "A {dog} jumps."}'


@pytest.mark.parametrize(
    "reply",
    [
        FINAL,
        f" \n{FINAL}\n",
        f"```json\n{FINAL}\n```",
        f"Here is the {{JSON}} you asked for:\n```json\n{FINAL}\n```",
        f"{FINAL}\nNote: I used {{curly}} braces.",
        f"{{{FINAL}}}",
        f"{{ {FINAL} }}",
        f"[{FINAL}]",
        f"{FINAL}\n{FINAL}",
        f"{FINAL} {FINAL.replace(' ', '  ', 1)}",
        f"<think>\n\n</think>\n\n{FINAL}",
        f"<think>The schema is {DRAFT}.</think>\n{FINAL}",
        f"I think of {DRAFT}.\n</think>\n{FINAL}",  # the template opened the thoughts
        f"<think>{DRAFT}</think> <think>{DRAFT}</think>{FINAL}",
        f"<THINKING>{DRAFT}</Thinking>{FINAL}",
        f"<thought kind='plan'>{DRAFT}</thought >{FINAL}",
        f"<seed:think>{DRAFT}</seed:think>{FINAL}",
        f"[THINK]{DRAFT}[/THINK]{FINAL}",
        f"◁think▷{DRAFT}◁/think▷{FINAL}",
        f"<|begin_of_thought|>{DRAFT}<|end_of_thought|><|begin_of_solution|>{FINAL}<|end_of_solution|>",
        f"<answer>{FINAL}</answer>",
        f"<|begin_of_box|>{FINAL}<|end_of_box|>",
        f"{FINAL}<|im_end|>",
    ],
)
def test_the_answer_is_found(reply):
    assert json_object(reply) == {"caption": "A {dog} jumps."}


@pytest.mark.parametrize(
    ("reply", "fault"),
    [
        ("", "no JSON object"),
        ("A dog jumps.", "no JSON object"),
        ('"A dog jumps."', "no JSON object"),
        ("{curly}", "no JSON object"),
        (json.dumps(FINAL), "not valid JSON"),  # JSON within a string
        (f"{DRAFT} {json.dumps(FINAL)}", "not valid JSON"),
        (f"{DRAFT} {json.dumps(json.dumps(FINAL, indent=1))}", "not valid JSON"),
        (f"<think>{DRAFT}</think>", "no JSON object"),
        (f"<think>{DRAFT}", "ends within its thoughts"),
        (f"<think>Hm.</think><think>{DRAFT}", "ends within its thoughts"),
        (f"<think>{DRAFT} {FINAL}", "ends within its thoughts"),
        (f"<reasoning>{DRAFT}", "ends within its thoughts"),
        (f"[THINK]{DRAFT}", "ends within its thoughts"),
        (f"{DRAFT}\n{FINAL}", "2 JSON objects that differ"),
        (f"[{DRAFT}, {FINAL}]", "2 JSON objects that differ"),
        (f"Draft: {DRAFT}. Final: {FINAL[:-4]}", "not valid JSON"),
        (f"Draft: {DRAFT}. Final: {FINAL[:-1]},}}", "not valid JSON"),
        (f"{DRAFT} {{'caption': 'A dog.'}}", "not valid JSON"),
        (f'{DRAFT} {{caption: "A dog."}}', "not valid JSON"),
        (f"{DRAFT} {{“caption”: “A dog.”}}", "not valid JSON"),
        ("{}" * 20, "more than 16 JSON objects"),
        (f"{FINAL} {{}}", "2 JSON objects that differ"),
        ('{"caption": "A dog', "not valid JSON"),
        ('{"caption": "A {dog} ju', "not valid JSON"),
        ('{"caption": "A dog\njumps."}', "not valid JSON"),
        ('{"caption": "Draft.", "caption": "A dog."}', "is given twice"),
        ('{"caption": {"a": 1, "a": 1}}', "is given twice"),
        ('{"quality_score": 1} {"quality_score": true}', "2 JSON objects that differ"),
        (f"<plan>{DRAFT}</plan>", "'<plan>' beside the answer"),
        (f"<|channel|>analysis<|message|>{DRAFT}<|end|>", "beside the answer"),
        (f"[DRAFT]{DRAFT}[/DRAFT]", "beside the answer"),
        (f"◁plan▷{DRAFT}", "beside the answer"),
        (f"{FINAL}</think>", "no JSON object"),
    ],
)
def test_what_may_be_mistaken_is_refused(reply, fault):
    with pytest.raises(ValueError, match=fault):
        json_object(reply)


@pytest.mark.parametrize("reader", [json_object, segment_captions])
@pytest.mark.parametrize(
    "piece",
    [
        "{",
        "{ ",
        '{"',
        "{}",
        "{a",
        "{\\",
        "{\\n",
        "[",
        "<",
        "< ",
        "<think",
        "<a:",
        "◁",
        "\n",
        "Description of segment 1:",
    ],
)
def test_a_long_reply_takes_no_long_time(reader, piece):
    """A pattern that goes back and forth, or reads on from every brace, would take minutes."""
    size = 1 << 17
    for text in (piece * (size // len(piece)), piece + " " * size, piece + "a" * size):
        with contextlib.suppress(ValueError):
            reader(text)


def test_the_score_of_the_papers_prompt_is_read():
    for reply in ("{'quality_score': 8}", '{"quality_score": 8}', "{\u2018quality_score\u2019: 8}",
                  "<think>{'quality_score': 3}</think>```json\n{ 'quality_score' : 8 }\n```"):  # fmt: skip
        assert quality_score(reply) == {"quality_score": 8}
    assert quality_score("{'quality_score': 7.5}") == {"quality_score": 7.5}
    for reply in ("{'quality_score': '8'}", "{'quality_score': 8, 'why': 'x'}", "{'quality_score': 08}",
                  "{'quality_score': 3} {'quality_score': 8}"):  # fmt: skip
        with pytest.raises(ValueError):
            quality_score(reply)


LINES = 'Description of segment 1: A player runs. A defender follows.\n\nDescription of segment 2: ""\n'


def test_the_lines_of_the_papers_prompt_are_read():
    texts = ["A player runs. A defender follows.", ""]
    assert segment_captions(LINES) == {"captions": texts}
    assert segment_captions(f"<think>Description of segment 1: Draft.</think>{LINES}") == {"captions": texts}
    assert segment_captions(f"Here they are:\n**{LINES.replace(': A', ':** A')}") == {"captions": texts}
    quoted = 'Description of segment 1: "He says "go" and runs."\nDescription of segment 2: “He runs.”'
    assert segment_captions(quoted) == {"captions": ['"He says "go" and runs."', "He runs."]}
    assert segment_captions('{"captions": ["A.", ""]}') == {"captions": ["A.", ""]}


@pytest.mark.parametrize(
    ("reply", "fault"),
    [
        (LINES.replace("2", "3"), "numbered from 1 on"),
        (LINES.replace("1", "0").replace("2", "1"), "numbered from 1 on"),
        (LINES + LINES, "numbered from 1 on"),
        (LINES + "\nNote: nothing happens in the second.", "segment 2 must stand on one line"),
        (LINES.replace("runs. ", "runs.\n"), "segment 1 must stand on one line"),
        (LINES + '{"captions": ["A.", "B."]}', "both descriptions and a JSON object"),
        (LINES.strip() + " (nothing changes)", "segment 2 must be text or empty, not both"),
        (LINES + "</s>", "beside the answer"),
        ("<think>" + LINES, "ends within its thoughts"),
    ],
)
def test_lines_that_may_be_mistaken_are_refused(reply, fault):
    with pytest.raises(ValueError, match=fault):
        segment_captions(reply)
