"""Conversations of other forms become the project's own; what is malformed is named by its line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from helios.errors import UserError
from helios.train.data import documents
from helios.train.formats import own
from helios.train.tokenizer import END

ONE = f"<|user|> Be brief.\n\nWho? <|assistant|> I. <|user|> Why? <|assistant|> So. {END}\n"
TALK = [("system", "Be brief."), ("user", " Who?"), ("assistant", "I. "), ("user", "Why?"), ("assistant", "So.")]
MESSAGES = {"messages": [{"role": role, "content": content} for role, content in TALK]}
SHARED = {"conversations": [{"from": {"user": "human", "assistant": "gpt"}.get(role, role), "value": content}
                            for role, content in TALK], "id": "x"}
CHATML = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in TALK)


def lines(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.mark.parametrize(("text", "expected"), [
    (lines(MESSAGES, SHARED), ONE * 2),
    (json.dumps([SHARED, MESSAGES]), ONE * 2), (json.dumps([SHARED, MESSAGES], indent=2) + "\n", ONE * 2),
    ("\n" + lines({"text": "Plain [1]."}) + "\n" + lines({"text": f"é {END}"}), f"Plain [1].{END}\né {END}"),
    (lines({"text": CHATML}), ONE),
    (lines({"prompt": "Who?", "completion": " I."}, {"instruction": "Add.", "input": "1 1", "output": "2"},
           {"instruction": "Hi", "input": "", "output": "Ho"}),
     f"<|user|> Who? <|assistant|> I. {END}\n<|user|> Add.\n\n1 1 <|assistant|> 2 {END}\n"
     f"<|user|> Hi <|assistant|> Ho {END}\n"),
    ('{"text": "a\\u003c|endoftext|\\u003e"}', f"a{END}"),
    (lines({"messages": [{"role": "assistant", "content": [{"type": "text", "text": "Hello"}]}]}),
     f"<|assistant|> Hello {END}\n"),
    (CHATML, ONE), (CHATML * 2, ONE * 2), (CHATML + "<|endoftext|>" + CHATML, ONE * 2),
    (CHATML[CHATML.index("<|im_start|>user"):] + "\n" + CHATML, ONE.replace("Be brief.\n\n", "") + ONE),
    (f"a<|endoftext|>b {END}", f"a{END}b {END}")])
def test_forms_that_are_recognised(text: str, expected: str) -> None:
    assert own(text, "a.txt") == expected
    assert own(own(text, "a.txt"), "a.txt") == expected


@pytest.mark.parametrize("text", ["{ int x; }\n", "[Scene 1]\nWell.", '{"a": 1}\n', "5 apples", "A <|im_start|> mark",
                                  "{" * 99_999, ONE, "\n"])
def test_other_texts_stay(text: str) -> None:
    assert own(text, "a.txt") == own(text, "a.jsonl", "text") == text


def test_each_conversation_is_a_document() -> None:
    assert documents(own(lines(*[MESSAGES] * 7), "a.jsonl")) == [ONE] * 7


def test_as_text_nothing_is_converted() -> None:
    for text in (lines(MESSAGES), CHATML):
        assert own(text, "a.jsonl", "text") == text


GOOD = lines(MESSAGES)


@pytest.mark.parametrize(("text", "words"), [
    (GOOD + '{"text": "cut', "line 2: no JSON: Unterminated string"), (GOOD + "\n\nprose\n", "line 4: no JSON"),
    (GOOD + lines({"other": 1}), "line 2: expected an object with text, messages"),
    (GOOD + "7\n", "line 2: expected an"),
    (GOOD + lines({"text": None}), "line 2: text: expected text, got null"),
    (GOOD + lines({"text": "\ud800"}), "line 2: half of a surrogate pair"),
    (GOOD + lines({"messages": []}), "line 2: messages: expected a list of turns"),
    (GOOD + lines({"messages": [{"role": "user"}]}), "line 2: messages: expected turns with role and content"),
    (GOOD + lines({"messages": [{"role": "tool", "content": "x"}]}), "line 2: unknown role 'tool'"),
    (GOOD + lines({"prompt": "x"}), "line 2: prompt without an answer"),
    (GOOD + '{"text": ' + "[" * 99_999, "line 2: JSON nested"),
    (json.dumps([MESSAGES, 7], indent=1), "line 26: expected an object"), (json.dumps([MESSAGES])[:-1], "cut off")])
def test_a_malformed_line_is_named(text: str, words: str) -> None:
    with pytest.raises(UserError, match=r"^a\.jsonl") as raised:
        own(text, "a.jsonl")
    assert words in str(raised.value) and len(str(raised.value)) < 300


@pytest.mark.parametrize(("text", "words"), [
    (CHATML + "prose", "line 11: expected <|im_start|>"), (CHATML + "<|im_start|>user\nopen", "line 11: expected"),
    (CHATML.replace("<|im_end|>", "", 1), "line 1: expected"),
    (CHATML.replace("system", "tool"), "unknown role 'tool'")])
def test_malformed_chatml(text: str, words: str) -> None:
    with pytest.raises(UserError, match=r"^a\.txt") as raised:
        own(text, "a.txt")
    assert words in str(raised.value)


def test_chat_without_marks_is_refused() -> None:
    assert own(ONE, "a.txt", "chat") == ONE
    with pytest.raises(UserError, match="has neither"):
        own("prose", "a.txt", "chat")
