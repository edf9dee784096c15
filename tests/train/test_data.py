"""Splits lose no document, batches need only a step number, caches may be damaged or missing."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios.errors import UserError
from helios.train import data, synth
from helios.train.data import EVAL, TRAIN, batch, documents, load, read_text, split_documents, tokens
from helios.train.tokenizer import END, Tokenizer

TEXT = synth.corpus(60_000)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXT, 400)


def test_read_text_keeps_every_byte(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("é\r\n a\n".encode())
    assert read_text(tmp_path / "a.txt") == "é\r\n a\n"


@pytest.mark.parametrize("content, message", [
    (None, "cannot read"), (b"", "is empty"), (b" \n", "is empty"), (b"abc\xff\xfe", "0xff at offset 3"),
    ("é".encode() + b"\xc3", "0xc3 at offset 2")])
def test_read_text_errors(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_text(tmp_path / "a.txt")


def test_read_text_of_a_directory_and_of_no_possible_name(tmp_path: Path) -> None:
    for path in (tmp_path, "a\0b"):
        with pytest.raises(UserError, match="cannot read"):
            read_text(path)


documents_of_any_kind = st.lists(st.text(alphabet="ab <|\n", max_size=8).map(lambda t: t + END + "\n"), max_size=40)


@given(documents_of_any_kind, st.sampled_from(["", "unfinished"]))
def test_documents_are_the_text(docs: list[str], tail: str) -> None:
    text = "".join(docs) + tail
    parts = documents(text)
    assert "".join(parts) == text
    assert all(part.count(END) <= 1 for part in parts)
    assert len(parts) == len(docs) + bool(tail)


@given(documents_of_any_kind, st.floats(0, 1), st.integers())
def test_split_puts_each_document_on_one_side(docs: list[str], fraction: float, seed: int) -> None:
    text = "".join(docs)
    kinds = {d.strip() for d in documents(text)}
    if len(kinds) < 2:
        with pytest.raises(UserError, match="--val-data"):
            split_documents(text, fraction, seed)
        return
    train, val = (documents(side) for side in split_documents(text, fraction, seed))
    assert train and val
    assert Counter(train) + Counter(val) == Counter(documents(text))
    assert not {d.strip() for d in train} & {d.strip() for d in val}
    assert split_documents(text, fraction, seed) == ("".join(train), "".join(val))


def test_split_is_a_tenth_in_the_old_order_and_follows_the_seed() -> None:
    train, val = split_documents(TEXT)
    count = len(documents(TEXT))
    assert abs(len(documents(val)) - count / 10) <= 1
    for side in (train, val):
        positions = [TEXT.index(d) for d in documents(side)]
        assert positions == sorted(positions)
    assert split_documents(TEXT, seed=1) != (train, val)


def test_split_hardly_moves_when_the_text_grows() -> None:
    old, new = (set(documents(split_documents(synth.corpus(size))[1])) for size in (50_000, 60_000))
    assert len(old & new) > 0.7 * len(old)


def test_one_document_cannot_be_split() -> None:
    for text in ("no end mark at all", f"one {END}\n", f"twice {END}\n" * 2):
        with pytest.raises(UserError, match="--val-data"):
            split_documents(text)


def test_tokens_are_cached_and_mapped(tokenizer: Tokenizer, tmp_path: Path, monkeypatch) -> None:
    first = tokens(TEXT, tokenizer, tmp_path / "new" / "cache")
    monkeypatch.setattr(Tokenizer, "encode", lambda *_: pytest.fail("the cache was not used"))
    again = tokens(TEXT, tokenizer, tmp_path / "new" / "cache")
    assert isinstance(again, np.memmap) and again.dtype == first.dtype == np.uint16
    assert np.array_equal(first, again) and tokenizer.decode(again) == TEXT


def test_another_text_or_tokenizer_is_another_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for text, which in ((TEXT, tokenizer), (TEXT + "!", tokenizer), (TEXT, Tokenizer.train(TEXT, 401))):
        assert which.decode(tokens(text, which, tmp_path)) == text
    assert len(list(tmp_path.glob("tokens-*.npy"))) == 3 == len(list(tmp_path.iterdir()))


@pytest.mark.parametrize("damage", [
    lambda raw: b"", lambda raw: raw[:50], lambda raw: raw[:-9], lambda raw: raw[:500] + b"\xff\xff" + raw[502:],
    lambda raw: b"noise" * 1000, lambda raw: raw.replace(b"<u2", b"<i2")])
def test_a_damaged_cache_is_made_anew(tokenizer: Tokenizer, tmp_path: Path, damage) -> None:
    expected = np.array(tokens(TEXT, tokenizer, tmp_path))
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    path.write_bytes(damage(good))
    assert np.array_equal(tokens(TEXT, tokenizer, tmp_path), expected)
    assert path.read_bytes() == good


def test_a_cache_that_cannot_be_written_is_no_error(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert tokenizer.decode(tokens(TEXT, tokenizer, tmp_path / "file")) == TEXT
    if os.getuid():  # root may write anywhere
        tmp_path.chmod(0o500)
        assert tokenizer.decode(tokens(TEXT, tokenizer, tmp_path)) == TEXT


@given(st.integers(0, 2**40), st.integers(1, 9), st.integers(1, 12), st.integers(-5, 2**70), st.integers(1, 40))
def test_batch_is_a_shifted_window_at_a_pure_offset(step: int, size: int, block: int, seed: int, spare: int) -> None:
    ids = np.arange(block + spare, dtype=np.uint16)
    x, y = batch(ids, step, size, block, seed, TRAIN)
    assert x.shape == y.shape == (size, block) and x.dtype == y.dtype == np.int32
    assert x.flags.c_contiguous and y.flags.c_contiguous
    assert (y == x + 1).all() and (x == x[:, :1] + np.arange(block)).all()
    assert x.min() >= 0 and y.max() < len(ids)
    for a, b in zip(batch(ids, step, size, block, seed, TRAIN), (x, y), strict=True):
        assert np.array_equal(a, b)


def test_every_offset_is_reached_about_equally() -> None:
    ids = np.arange(14, dtype=np.uint16)
    counts = Counter(int(row[0]) for step in range(500) for row in batch(ids, step, 4, 4, 7, TRAIN)[0])
    assert sorted(counts) == list(range(10))
    assert all(140 < n < 260 for n in counts.values())


def test_steps_seeds_and_streams_differ() -> None:
    ids = np.arange(60_000, dtype=np.uint16)
    draws = [batch(ids, step, 8, 16, seed, stream)[0].tobytes()
             for step in range(5) for seed in range(5) for stream in (TRAIN, EVAL)]
    assert len(set(draws)) == len(draws)


def test_offsets_are_fixed_for_all_time() -> None:
    x, _ = batch(np.arange(60_000, dtype=np.uint16), 3, 4, 1, 42, TRAIN)
    assert x[:, 0].tolist() == [14666, 21791, 48767, 27231]


def test_batch_names_both_lengths() -> None:
    assert batch(np.zeros(9, np.uint16), 0, 1, 8, 0)[0].shape == (1, 8)
    with pytest.raises(UserError, match="8 tokens, but a block of 8 needs at least 9"):
        batch(np.zeros(8, np.uint16), 0, 1, 8, 0)


def test_load_trains_once_and_splits(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    first = load(tmp_path / "a.txt", None, 400, 32, tmp_path / "cache", 0)
    assert (first.tokenizer.decode(first.train), first.tokenizer.decode(first.val)) == split_documents(TEXT)
    monkeypatch.setattr(Tokenizer, "train", lambda *_: pytest.fail("the cached tokenizer was not used"))
    again = load(tmp_path / "a.txt", None, 400, 32, tmp_path / "cache", 0)
    assert again.tokenizer.fingerprint == first.tokenizer.fingerprint and again.text_hash == first.text_hash
    assert load(tmp_path / "a.txt", None, 400, 32, tmp_path / "cache", 1, first.tokenizer).text_hash != first.text_hash


def test_load_makes_a_damaged_cached_tokenizer_anew(tmp_path: Path) -> None:
    first = load("synth:50KB", None, 400, 32, tmp_path, 0)
    (path,) = tmp_path.glob("tokenizer-*.json")
    path.write_text("{")
    assert load("synth:50KB", None, 400, 32, tmp_path, 0).tokenizer.fingerprint == first.tokenizer.fingerprint


def test_load_takes_validation_text_and_tokenizer(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("a single document, without an end mark, long enough")
    with pytest.raises(UserError, match="--val-data"):
        load(tmp_path / "a.txt", None, 300, 4, tmp_path, 0, tokenizer)
    loaded = load(tmp_path / "a.txt", "synth:10KB:3", 300, 4, tmp_path, 0, tokenizer)
    assert loaded.tokenizer is tokenizer
    assert tokenizer.decode(loaded.val) == synth.corpus(10_000, 3)
    with pytest.raises(UserError, match="training text has"):
        load(tmp_path / "a.txt", "synth:10KB:3", 300, 500, tmp_path, 0, tokenizer)
    with pytest.raises(UserError, match="validation text has"):
        load("synth:10KB:3", tmp_path / "a.txt", 300, 500, tmp_path, 0, tokenizer)


@pytest.mark.parametrize(
    "source", ["synth:", "synth:2XB", "synth:2KB:x", "synth:2KB:-1", "synth:2KB:1:2", "nothing.txt"])
def test_bad_sources(source: str) -> None:
    with pytest.raises(UserError):
        data.source_text(source)
