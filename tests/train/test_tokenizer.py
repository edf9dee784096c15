"""Any text comes back from its ids; bad files and sizes are named."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st

from helios.errors import UserError
from helios.train import synth, tokenizer
from helios.train.tokenizer import LARGEST, SMALLEST, SPECIALS, Tokenizer

TEXT = synth.corpus(100_000)


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return Tokenizer.train(TEXT, 700)


texts = st.lists(st.one_of(st.text(), st.sampled_from([*SPECIALS, " ", "\n", "\n\n", "\r\n", "\t", "the", "<|user|"]))
                 ).map("".join)


@given(texts)
@example("")
@example("\x00\ufeff\u2028 Ġ é e\u0301 😀 <|x|>")
def test_round_trip(trained: Tokenizer, text: str) -> None:
    ids = trained.encode(text)
    assert ids.dtype == np.uint16 and ids.ndim == 1
    assert trained.decode(ids) == text


@given(texts.map(lambda t: t * 5))
def test_cutting_into_pieces_changes_no_token(trained: Tokenizer, text: str) -> None:
    whole = trained.encode(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "PIECE", 1)
        patch.setattr(tokenizer, "GROUP", 3)
        assert np.array_equal(trained.encode(text), whole)


def test_specials_are_atomic_and_come_first(trained: Tokenizer) -> None:
    assert [trained.id(s) for s in SPECIALS] == [0, 1, 2]
    assert trained.encode("".join(SPECIALS)).tolist() == [0, 1, 2]
    with pytest.raises(KeyError):
        trained.id("<|system|>")


def test_vocab_size_is_as_asked_and_ids_stay_below(trained: Tokenizer) -> None:
    assert trained.vocab_size == 700
    assert trained.encode(TEXT).max() < 700
    assert Tokenizer.train(TEXT, SMALLEST).vocab_size == SMALLEST


def test_tokens_have_texts_of_their_own(trained: Tokenizer) -> None:
    assert len(trained.tokens) == len(set(trained.tokens)) == 700 and trained.tokens[:3] == list(SPECIALS)
    assert trained.tokens[trained.encode("a")[0]] == "a"


def test_merges_learned_from_the_text_pack_it(trained: Tokenizer) -> None:
    assert len(trained.encode(TEXT)) < len(TEXT) / 2


def test_save_and_load(trained: Tokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.fingerprint == trained.fingerprint and loaded.vocab_size == 700
    assert np.array_equal(loaded.encode(TEXT), trained.encode(TEXT))
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]


def test_training_is_the_same_in_another_process(trained: Tokenizer) -> None:
    code = ("from helios.train import synth, tokenizer;"
            "print(tokenizer.Tokenizer.train(synth.corpus(100_000), 700).fingerprint)")
    for threads in ("true", "false"):
        other = subprocess.run([sys.executable, "-P", "-c", code], env=os.environ | {"TOKENIZERS_PARALLELISM": threads},
                               capture_output=True, text=True, check=True)
        assert other.stdout.strip() == trained.fingerprint


def test_fingerprint_tells_vocabularies_apart(trained: Tokenizer) -> None:
    assert Tokenizer.train(TEXT, 701).fingerprint != trained.fingerprint


@pytest.mark.parametrize("size", [-1, 0, SMALLEST - 1, LARGEST + 1])
def test_size_out_of_range(size: int) -> None:
    with pytest.raises(UserError, match=r"259 to 65,535"):
        Tokenizer.train(TEXT, size)


def test_text_too_poor_for_the_size_says_what_it_supports() -> None:
    with pytest.raises(UserError, match="supports only 262"):
        Tokenizer.train("abcd.abcd", 4000)  # ab, abc or cd, abcd


def test_lone_surrogate(trained: Tokenizer) -> None:
    with pytest.raises(UserError, match="character 2"):
        trained.encode("ab\udcff")


def test_missing_truncated_and_foreign_files(trained: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(UserError, match="cannot read"):
        Tokenizer.load(path)
    with pytest.raises(UserError, match="cannot read"):
        Tokenizer.load(tmp_path)
    trained.save(path)
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"[]", b"\xff\xfe"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            Tokenizer.load(path)
    vocab = {s: i for i, s in enumerate((*SPECIALS, "?"))}
    words = [tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, **unknown)).to_str().encode()
             for unknown in ({"unk_token": "?"}, {})]
    for foreign, why in ((whole.replace(b"<|user|>", b"<|person|>"), r"lacks <\|user\|>; give a byte-level BPE"),
                         (whole.replace(b'"id": 699', b'"id": 70000').replace(b": 699", b": 70000"), "at most 65,535"),
                         (words[0], "cuts <"), (words[1], "cannot encode any text")):
        path.write_bytes(foreign)
        with pytest.raises(UserError, match=f"foreign tokenizer.*({why})"):
            Tokenizer.load(path)


def test_save_to_a_place_that_is_not_there(trained: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        trained.save(tmp_path / "missing" / "tokenizer.json")
