"""Other forms of documents and conversations, as the project's own: `<|user|> … <|assistant|> … <|end_of_text|>`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from helios.errors import UserError
from helios.train.tokenizer import ASSISTANT, END, USER

FORMATS = ("auto", "text", "chat", "jsonl")
OTHER_END = "<|endoftext|>"  # GPT-2's mark between documents

# What a system says goes before what the user says first, in the same turn.
ROLES = {"user": USER, "human": USER, "system": USER, "assistant": ASSISTANT, "gpt": ASSISTANT}
TURNS = ("messages", "conversations")  # keys of a record with a list of turns
PAIRS = (("prompt", "completion"), ("prompt", "response"), ("instruction", "output"), ("instruction", "response"))
KEYS = {*TURNS, "text", *(question for question, _ in PAIRS)}

TURN = "<|im_start|>"
CHATML = re.compile(rf"(\s*)(?:{re.escape(TURN)}\s*(\w+)(.*?){re.escape('<|im_end|>')}|{re.escape(END)})", re.DOTALL)


def own(text: str, origin: str, format: str = "auto") -> str:
    """Return a text in the project's own form.

    format: "jsonl": records as JSON, one after another or in a list. "chat": conversations with the project's marks or
    in ChatML. "text": any text, which stays as it is but for OTHER_END, which becomes END. "auto": what the name
    `origin` and the text's beginning say. Raises UserError, with the number of the line, for what is none of these.
    """
    if format == "jsonl" or (format == "auto" and _is_json(text, origin)):
        return "".join(_document(record, f"{origin}, line {line}") for line, record in _records(text, origin))
    text = text.replace(OTHER_END, END)
    if format != "text" and text.lstrip().startswith(TURN):
        return _from_chatml(text, origin)
    if format == "chat" and not is_chat(text):
        raise UserError(f"{origin} has neither {USER} and {ASSISTANT} nor {TURN}, which --format chat asks for; leave "
                        f"--format out")
    return text


def is_chat(text: str) -> bool:
    """Return whether a text has the marks of conversations."""
    return USER in text and ASSISTANT in text


def ended(text: str) -> str:
    """Return the text with an end mark, unless it has one at its end."""
    return text if text.rstrip().endswith(END) else f"{text}{END}\n"


def _is_json(text: str, origin: str) -> bool:
    if Path(origin).suffix.lower() in (".jsonl", ".ndjson", ".json"):
        return True
    start = re.compile(r"\s*\[?\s*").match(text)
    assert start
    try:
        first, _ = json.JSONDecoder().raw_decode(text, start.end())
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and bool(KEYS & first.keys())


def _records(text: str, origin: str) -> Iterator[tuple[int, Any]]:
    """Yield (number of its first line, value) of every record. Raises UserError."""
    decode, line, counted = json.JSONDecoder().raw_decode, 1, 0
    at, end, gap = 0, len(text.rstrip()), re.compile(r"\s*")
    if text.lstrip().startswith("["):
        at, end, gap = text.index("[") + 1, end - 1, re.compile(r"[\s,]*")
        if text[end] != "]":
            raise UserError(f"{origin} begins with [ and does not end with ]; it was cut off, or is no JSON")
    while (at := gap.match(text, at).end()) < end:  # type: ignore[union-attr]
        line, counted = line + text.count("\n", counted, at), at
        try:
            record, at = decode(text, at)
        except ValueError as error:
            raise UserError(f"{origin}, line {getattr(error, 'lineno', line)}: no JSON: {getattr(error, 'msg', error)} "
                            f"at column {getattr(error, 'colno', 1)}; repair the line, or give --format text"
                            ) from error
        except RecursionError as error:
            raise UserError(f"{origin}, line {line}: JSON nested too deeply; repair the line") from error
        yield line, record


def _document(record: Any, where: str) -> str:
    """Return a record's document. Raises UserError, which begins with `where`."""
    if not isinstance(record, Mapping) or not KEYS & record.keys():
        raise UserError(f"{where}: expected an object with text, messages, conversations, prompt and completion, or "
                        f"instruction and output, got {json.dumps(record):.60}; --format text takes a file as it is")
    given = [key for key in record if key in KEYS]
    if key := next((key for key in TURNS if key in given), None):
        document = conversation(_turns(record[key], f"{where}: {key}"), where)
    elif "text" in given:
        text = _string(record["text"], f"{where}: text")
        document = ended(_from_chatml(text, where) if text.lstrip().startswith(TURN) else text)
    elif pair := next((pair for pair in PAIRS if all(key in record for key in pair)), None):
        question, answer = pair
        asked = [_string(record[key], f"{where}: {key}") for key in (question, "input") if record.get(key)]
        said = _string(record[answer], f"{where}: {answer}")
        document = conversation([("user", "\n\n".join(asked)), ("assistant", said)], where)
    else:
        raise UserError(f"{where}: {' and '.join(given)} without an answer; a prompt needs a completion, an "
                        f"instruction an output")
    try:
        document.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: half of a surrogate pair, which is no character; repair the line") from error
    return document


def _turns(turns: Any, where: str) -> Iterator[tuple[str, str]]:
    if not isinstance(turns, list) or not turns:
        raise UserError(f"{where}: expected a list of turns, got {json.dumps(turns):.60}")
    for turn in turns:
        for role, content in (("role", "content"), ("from", "value")):
            if isinstance(turn, Mapping) and role in turn and content in turn:
                yield _string(turn[role], f"{where}: {role}"), _string(turn[content], f"{where}: {content}")
                break
        else:
            raise UserError(f"{where}: expected turns with role and content, or from and value, got "
                            f"{json.dumps(turn):.60}")


def _string(value: Any, where: str) -> str:
    if isinstance(value, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in value):
        value = "".join(_string(part.get("text"), where) for part in value)
    if not isinstance(value, str):
        raise UserError(f"{where}: expected text, got {json.dumps(value):.60}")
    return value.replace(OTHER_END, END)


def conversation(turns: Iterable[tuple[str, str]], where: str) -> str:
    """Return a document of (role, what was said) each. Raises UserError, which begins with `where`, for other roles."""
    marked = []
    for role, content in turns:
        if role.lower() not in ROLES:
            raise UserError(f"{where}: unknown role {role!r}; there are {', '.join(ROLES)}")
        marked.append((ROLES[role.lower()], content.strip()))
    joined = ((mark, "\n\n".join(content for _, content in group)) for mark, group in groupby(marked, lambda t: t[0]))
    return "".join(f"{mark} {content} " for mark, content in joined) + f"{END}\n"


def _from_chatml(text: str, origin: str) -> str:
    """Return the conversations of a ChatML text. One ends at END; in a text without END, also before a system's turn
    and where a blank line follows an answer."""
    marked, end, at = END in text, len(text.rstrip()), 0
    documents: list[list[tuple[str, str]]] = [[]]
    while at < end:
        found = CHATML.match(text, at)
        if not found or TURN in (found[3] or ""):
            line = text.count("\n", 0, len(text) - len(text[at:].lstrip())) + 1
            raise UserError(f"{origin}, line {line}: expected {TURN}ROLE … <|im_end|>; repair it, or give "
                            f"--format text")
        at, (gap, role, content) = found.end(), found.groups()
        blank = gap.count("\n") > 1 and documents[-1] and documents[-1][-1][0] == "assistant"
        if role is None or (not marked and (role == "system" or blank)):
            documents.append([])
        if role:
            documents[-1].append((role, content))
    return "".join(conversation(turns, origin) for turns in documents if turns)
