"""The embedded corpus keeps its form, its size and its facts."""

import hashlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios.errors import UserError
from helios.train.synth import (
    CITIES,
    CONCEPTS,
    FIGURES,
    GIFTS,
    NAMES,
    PROFESSIONS,
    _years,
    corpus,
    parse_size,
)
from helios.train.tokenizer import Tokenizer

TEXT = corpus(2_000_000)
LINE = re.compile(r"(<\|user\|> [^<>|]+ <\|assistant\|> [^<>|]+ ){1,4}<\|end_of_text\|>\n")


def test_every_line_is_a_conversation() -> None:
    for line in TEXT.splitlines(keepends=True):
        assert LINE.fullmatch(line), line
        assert "  " not in line and "{" not in line and "\ufffd" not in line


@settings(max_examples=30)
@given(st.integers(3_000, 60_000), st.integers(0, 2**64))
def test_size_is_within_one_document_and_short_is_a_prefix(size: int, seed: int) -> None:
    longer, text = corpus(size + 5_000, seed), corpus(size, seed)
    assert len(text.encode()) <= size and longer.startswith(text)
    following = longer[len(text):].splitlines(keepends=True)[0]
    assert len(text.encode()) + len(following.encode()) > size


def test_never_empty() -> None:
    assert LINE.fullmatch(corpus(1))


def test_seeds_differ_and_the_text_is_fixed() -> None:
    assert corpus(9_000) == TEXT[: len(corpus(9_000))] != corpus(9_000, 1)
    # Changes only with the tables and the grammar, never with Python's version.
    assert hashlib.sha256(corpus(100_000, 5).encode()).hexdigest()[:16] == "e9a6be3be4aa2442"


def test_conversations_seldom_repeat() -> None:
    lines = TEXT.splitlines()
    assert len(set(lines)) > 0.98 * len(lines)


def test_the_vocabulary_is_rich_enough() -> None:
    assert Tokenizer.train(corpus(300_000), 4000).vocab_size == 4000


def test_every_figure_speaks_and_every_table_is_used() -> None:
    assert len(FIGURES) >= 16
    for figure in FIGURES:
        for facts in figure.topics.values():
            assert all(fact in TEXT for fact in facts)
        assert all(clause in TEXT for clause in figure.timeline.values())
    for word in (*NAMES, *CITIES, *CONCEPTS.values(), *PROFESSIONS, *GIFTS):
        assert word in TEXT


def test_tables_agree_with_themselves() -> None:
    assert len({f.name for f in FIGURES}) == len({f.call for f in FIGURES}) == len(FIGURES)
    for f in FIGURES:
        assert f.birth < f.death <= f.birth + 100
        assert str(abs(f.birth)) in f.born and str(abs(f.death)) in f.died
        assert all(f.birth < year <= f.death for year in f.timeline)
        assert len(f.topics) >= 6 and len(f.sayings) >= 3


def test_answers_belong_to_the_one_who_is_asked() -> None:
    for line in TEXT.splitlines()[:2000]:
        question = line.split("<|assistant|>")[0]  # names the one who is asked, and perhaps another
        named = [f for f in FIGURES if f.call in question or f.name in question]
        assert 1 <= len(named) <= 2
        known = {(f"{-y} BC" if y < 0 else str(y), clause) for f in named for y, clause in f.timeline.items()}
        assert set(re.findall(r"> In (\d+(?: BC)?) I ([^.]+)\.", line)) <= known


@pytest.mark.parametrize(
    "a, b, years", [(1815, 1867, 52), (1867, 1815, 52), (-69, -30, 39), (-1, 1, 1), (-470, 360, 829)])
def test_there_was_no_year_nought(a: int, b: int, years: int) -> None:
    assert _years(a, b) == years


@pytest.mark.parametrize("size, count", [
    ("2MB", 2_000_000), ("300kb", 300_000), ("1 KiB", 1024), ("1.5MiB", 1_572_864), ("7", 7), ("7B", 7),
    (" 1gb ", 10**9), ("1GiB", 1 << 30)])
def test_parse_size(size: str, count: int) -> None:
    assert parse_size(size) == count


@pytest.mark.parametrize("size", ["", "MB", "-1MB", "0", "0.1B", "2TB", "2 M B", "1e6", "two", "1,000", "٣KB", "inf"])
def test_bad_sizes(size: str) -> None:
    with pytest.raises(UserError, match="2MB"):
        parse_size(size)
