"""Splits lose no document, batches need only a step number, caches may be damaged or missing."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios.errors import UserError
from helios.train import data, samples, synth
from helios.train.config import DataConfig
from helios.train.data import EVAL, TRAIN, Dataset, Mixture, batch, documents, split_documents, tokens
from helios.train.tokenizer import END, Tokenizer

TEXT = synth.corpus(60_000)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXT, 400)


def load(text: Path | str | tuple[str, ...], val: Path | str | None, vocab_size: int, block_size: int, cache: Path,
         seed: int = 0, tokenizer: Tokenizer | None = None, **more: Any) -> Dataset:
    config = DataConfig(data=text if isinstance(text, tuple) else str(text), val_data=val and str(val))
    return data.load(config, vocab_size, block_size, cache, seed, tokenizer, **more)


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
        assert "".join(split_documents(text, fraction, seed)) == text
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


@pytest.mark.parametrize(("text", "words"), [
    ("no end mark at all\n" * 50, "t has no document marks"), (f"one {END}\n" + "x" * 99, ""),
    ("x" * 99 + END, "t is a single document"), (f"twice {END}\n" * 20, "the 20 documents of t are all equal")])
def test_a_text_without_two_documents_gives_its_last_tenth(text: str, words: str) -> None:
    said: list[str] = []
    train, val = split_documents(text, say=said.append, name="t")
    assert train and val and train + val == text if words else Counter(train + val) == Counter(text)
    if words:
        assert len(val) >= 0.1 * len(text) - 1 and len(val) <= 0.21 * len(text)
        assert "\n" not in text or train.endswith("\n")
        assert len(said) == 1 and said[0].startswith(words) and said[0].endswith("its last 10% are for validation")
    else:
        assert said == []


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
    loaded = load(tmp_path / "a.txt", "synth:10KB:3", 300, 4, tmp_path, 0, tokenizer)
    assert loaded.tokenizer is tokenizer
    assert tokenizer.decode(loaded.val) == synth.corpus(10_000, 3)
    with pytest.raises(UserError, match="training text has"):
        load(tmp_path / "a.txt", "synth:10KB:3", 300, 500, tmp_path, 0, tokenizer)
    with pytest.raises(UserError, match="validation text has"):
        load("synth:10KB:3", tmp_path / "a.txt", 300, 500, tmp_path, 0, tokenizer)


def test_validation_with_the_training_text_is_warned_of(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "b.txt").write_text(TEXT)
    for val, count in ((tmp_path / "a.txt", 1), (tmp_path / "b.txt", 1), ("synth:10KB:3", 0), (None, 0)):
        warned: list[str] = []
        load(tmp_path / "a.txt", val, 400, 32, tmp_path, 0, tokenizer, warn=warned.append)
        assert len(warned) == count and all("the validation text is a training text" in line for line in warned)


def test_plain_text_has_prompts_of_its_own(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text("".join(f"Number {i} came\nand went.\n\n" for i in range(200)))
    plain = load(tmp_path / "a.txt", None, 400, 16, tmp_path, 0, tokenizer)
    assert not plain.chat and plain.prompts[0].startswith("Number 1") and len(set(plain.prompts)) == 5
    assert plain.tokenizer.decode(plain.val).count(plain.prompts[4]) == 1  # type: ignore[arg-type]
    chat = load("synth:20KB", None, 400, 16, tmp_path, 0, tokenizer)
    assert chat.chat and chat.prompts == samples.CHAT


# -- several texts ----------------------------------------------------------------------------------------------------

def test_a_mixture_of_one_is_the_text() -> None:
    ids = np.arange(999, dtype=np.uint16)
    for a, b in zip(batch(ids, 3, 8, 5, 1), batch(Mixture([ids], [7.0]), 3, 8, 5, 1), strict=True):
        assert np.array_equal(a, b)


def test_texts_are_drawn_by_weight_and_tokens() -> None:
    parts = [np.full(n, i, np.uint16) for i, n in enumerate((100, 300, 50))]
    mixture = Mixture(parts, [1.0, 2.0, 6.0])  # 100 : 600 : 300
    drawn = Counter(int(i) for step in range(1000) for i in batch(mixture, step, 8, 4, 0)[0][:, 0])
    assert [drawn[i] / 8000 for i in range(3)] == pytest.approx([0.1, 0.6, 0.3], abs=0.02)
    assert len(mixture) == 450
    for a, b in zip(batch(mixture, 5, 8, 4, 0), batch(mixture, 5, 8, 4, 0), strict=True):
        assert np.array_equal(a, b)
    with pytest.raises(UserError, match="50 tokens, but a block of 50"):
        batch(mixture, 0, 8, 50, 0)


def test_several_texts_are_split_one_by_one(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "b.txt").write_text("plain\n" * 200)
    names = (f"{tmp_path / 'a.txt'}=2", str(tmp_path / "b.txt"))
    found = load(names, None, 400, 16, tmp_path, 0, tokenizer)
    assert isinstance(found.train, Mixture) and isinstance(found.val, Mixture)
    assert tuple(found.train.weights) == tuple(found.val.weights) == (2.0, 1.0)
    for i, text in enumerate((TEXT, "plain\n" * 200)):
        assert tuple(tokenizer.decode(side.parts[i]) for side in (found.train, found.val)) == split_documents(text)
    other = load((names[0][:-1] + "3", names[1]), None, 400, 16, tmp_path, 0, tokenizer)
    assert other.text_hash != found.text_hash  # the weights are part of it
    with pytest.raises(UserError, match=r"training text of b\.txt has 800 tokens"):
        load(names, "synth:10KB", 400, 1000, tmp_path, 0, tokenizer)
