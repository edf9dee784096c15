"""Byte-level BPE: any UTF-8 text to uint16 ids and back; the marks of a conversation are one token each."""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from helios.errors import UserError
from helios.files import write_atomic

# Unset, the library falls back to one thread, with a warning, in a process that has forked.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

SPECIALS = USER, ASSISTANT, END = ("<|user|>", "<|assistant|>", "<|end_of_text|>")
SMALLEST = 256 + len(SPECIALS)  # every byte has a token of its own, so no text is out of vocabulary
LARGEST = 65_535  # ids are uint16
PIECE = 1 << 12  # characters that one thread encodes at a time
GROUP = 256  # pieces encoded at a time, since the library takes some 150 bytes a token of them

# Where a text may be cut without changing its tokens: after an end mark, and before a line break that a character other
# than white space or < follows (the pre-tokenizer makes that break a word of its own, whatever white space precedes).
CUT = re.compile(re.escape(END) + r"|(?=\n[^\s<])")


def check_size(vocab_size: int) -> None:
    """Raise UserError unless a vocabulary may have that many tokens."""
    if not SMALLEST <= vocab_size <= LARGEST:
        raise UserError(f"a vocabulary of {vocab_size:,} was asked for; give one from {SMALLEST} to {LARGEST:,}")


class Tokenizer:
    """A trained vocabulary. Where it was trained here, ids 0, 1 and 2 are SPECIALS. vocab_size: the largest id + 1."""

    def __init__(self, bpe: tokenizers.Tokenizer):
        self._bpe = bpe
        vocab: dict[str, int] = bpe.get_vocab()
        self.vocab_size = max(vocab.values(), default=-1) + 1
        self._ids = {s: vocab[s] for s in SPECIALS if s in vocab}

    @classmethod
    def train(cls, text: str, vocab_size: int) -> "Tokenizer":
        """Learn `vocab_size` tokens, SPECIALS and all 256 bytes included, from the whole text, deterministically.

        Pairs of tokens that occur only once are not merged. Raises UserError if the size is outside 259..65,535 or the
        text supports fewer tokens.
        """
        check_size(vocab_size)
        bpe = tokenizers.Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, min_frequency=2, special_tokens=list(SPECIALS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
        # Without SPECIALS, inside which the trainer would learn merges.
        bpe.train_from_iterator(re.split("|".join(map(re.escape, SPECIALS)), text), trainer)
        if (found := bpe.get_vocab_size()) < vocab_size:
            raise UserError(f"a vocabulary of {vocab_size:,} was asked for, but the text supports only {found:,}; "
                            f"give --vocab-size {found} or more text")
        return cls(bpe)

    @classmethod
    def of(cls, source: str | Path) -> "Tokenizer":
        """Read the vocabulary of a tokenizer.json or a run directory; SPECIALS that it lacks are added behind it.
        Raises UserError as `load` does."""
        path = Path(source)
        return cls.load(path / "tokenizer.json" if path.is_dir() else path, adopt=True)

    @classmethod
    def load(cls, path: str | Path, adopt: bool = False) -> "Tokenizer":
        """Read a tokenizer.json. adopt: whether SPECIALS that it lacks are added.
        Raises UserError if it is missing, damaged or not a byte-level BPE with SPECIALS."""
        try:
            return cls.parse(Path(path).read_bytes(), path, adopt)
        except OSError as error:
            raise UserError(f"cannot read the tokenizer {path}: {error.strerror}; give a tokenizer.json or the "
                            f"directory of a run (names on a hub are not looked up)") from error

    @classmethod
    def parse(cls, text: bytes, path: str | Path, adopt: bool = False) -> "Tokenizer":
        """Read the content of a tokenizer.json, as `load` does. path: where it comes from, for errors."""
        try:
            bpe = tokenizers.Tokenizer.from_buffer(text)
        except Exception as error:  # the library raises plain Exception for anything it cannot parse
            raise UserError(f"{path} is damaged or no tokenizer.json ({error}); give that of a run, or have a run "
                            f"train its own") from error
        bpe.no_padding()
        bpe.no_truncation()
        if adopt:
            bpe.add_special_tokens([s for s in SPECIALS if s not in bpe.get_vocab()])
        self = cls(bpe)
        if fault := self._fault():
            raise UserError(f"{path} is a foreign tokenizer: {fault}; give a byte-level BPE, such as GPT-2's, or have "
                            f"a run train its own")
        return self

    def _fault(self) -> str:
        """Return why texts cannot be trained on with this vocabulary; "" where they can."""
        # Every byte that may begin or continue a character, then the marks.
        probe = "".join(map(chr, (*range(0x100), 0x800, 0x4E00, 0xFFFD, 0x10000, 0x10FFFF, *map(ord, " ab  c")))
                        ) + "".join(SPECIALS)
        if self.vocab_size > LARGEST:
            return f"it has {self.vocab_size:,} tokens, at most {LARGEST:,} are possible"
        if missing := [s for s in SPECIALS if s not in self._ids]:
            return f"it lacks {' '.join(missing)}"
        try:
            ids = self.encode(probe)
        except Exception as error:  # the library raises plain Exception
            return f"it cannot encode any text ({error})"
        if ids[-len(SPECIALS):].tolist() != list(self._ids.values()):
            return f"it cuts {' '.join(SPECIALS)} into several tokens"
        return "" if self.decode(ids) == probe else "a text does not come back from its tokens"

    def save(self, path: str | Path) -> None:
        """Write tokenizer.json; a kill at any moment leaves the old file or the new. Raises UserError if it cannot."""
        try:
            write_atomic(path, lambda file: file.write(self.json()))
        except OSError as error:
            raise UserError(f"cannot write the tokenizer {path}: {error.strerror}; choose another place") from error

    def encode(self, text: str) -> np.ndarray:
        """Return the text's ids, uint16 [tokens]. Raises UserError for text without a UTF-8 form (lone surrogates)."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"the text is not valid Unicode at character {error.start:,}; give UTF-8 text") from error
        groups, pieces = [], list(_pieces(text))
        for i in range(0, len(pieces), GROUP):
            encodings = self._bpe.encode_batch(pieces[i : i + GROUP], add_special_tokens=False)
            groups += [np.array(e.ids, np.uint16) for e in encodings]
        return np.concatenate(groups) if groups else np.zeros(0, np.uint16)

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        """Return the text of `ids`, SPECIALS included; bytes that are not valid UTF-8 become U+FFFD."""
        return self._bpe.decode([int(i) for i in ids], skip_special_tokens=False)

    def id(self, special: str) -> int:
        """Return the id of one of SPECIALS. Raises KeyError for anything else."""
        return self._ids[special]

    @property
    def tokens(self) -> list[str]:
        """Return the text of each id, in the form that tokenizer.json has; "" where an id has none."""
        texts = {i: text for text, i in self._bpe.get_vocab().items()}
        return [texts.get(i, "") for i in range(self.vocab_size)]

    @property
    def fingerprint(self) -> str:
        """Return 32 hex digits that name this vocabulary, a hash of its tokenizer.json."""
        return hashlib.blake2b(self.json(), digest_size=16).hexdigest()

    def json(self) -> bytes:
        """Return the content of tokenizer.json."""
        return self._bpe.to_str(pretty=True).encode()


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while start < len(text):
        cut = CUT.search(text, start + PIECE)
        end = cut.end() if cut else len(text)
        yield text[start:end]
        start = end
