"""The way from a text to batches: documents, their split, cached token files, random windows."""

import hashlib
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from helios import random
from helios.errors import UserError
from helios.files import write_atomic
from helios.train import formats, texts
from helios.train.config import DataConfig
from helios.train.samples import CHAT, first_words
from helios.train.tokenizer import END, Tokenizer

TRAIN, EVAL = 0, 1  # streams of random offsets, independent of each other


@dataclass(frozen=True)
class Mixture:
    """Several texts. A sequence comes from one of them with a chance proportional to weight × tokens."""

    parts: Sequence[np.ndarray]  # uint16 [tokens] each
    weights: Sequence[float]

    def __len__(self) -> int:
        return sum(map(len, self.parts))


class Dataset(NamedTuple):
    """What a run trains on. text_hash: of all texts, by which a resumed run knows whether they changed."""

    tokenizer: Tokenizer
    train: np.ndarray | Mixture  # uint16 [tokens]
    val: np.ndarray | Mixture  # uint16 [tokens]
    text_hash: str
    chat: bool = True  # whether the training text has the marks of conversations
    prompts: Sequence[str] = CHAT  # what a run lets its model continue


def documents(text: str) -> list[str]:
    """Return the text cut after each <|end_of_text|> and the white space behind it; joined, they are the text."""
    ends = [m.end() for m in re.finditer(re.escape(END) + r"\s*", text)]
    return [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True) if a < b]


def split_documents(text: str, fraction: float = 0.1, seed: int = 0, say: Callable[[str], object] = str,
                    name: str = "the text") -> tuple[str, str]:
    """Return (training text, validation text): every document is whole, in one of them, in the old order.

    Documents are ranked by a hash of the seed and their text, and the lowest `fraction` is for validation, at least one
    and not all. So copies of a document stay together, and the split of a growing file hardly changes. A text without
    two different documents is cut in two instead, which `say` is told.
    """
    docs = documents(text)
    ranks = [hashlib.blake2b(d.strip().encode(), digest_size=8, key=str(seed).encode()).digest() for d in docs]
    order = sorted(set(ranks))
    if len(order) < 2:
        what = (f"the {len(docs):,} documents of {name} are all equal" if len(docs) > 1 else
                f"{name} is a single document" if END in text else f"{name} has no document marks ({END})")
        say(f"{what}: its last {fraction:.0%} are for validation")
        part = round(fraction * len(text))
        cut = len(text) - part
        cut = text.rfind("\n", cut - part, cut) + 1 or cut  # where a line begins, if one does near there
        return text[:cut], text[cut:]
    chosen = set(order[: min(max(1, round(fraction * len(order))), len(order) - 1)])
    sides: tuple[list[str], list[str]] = ([], [])
    for doc, rank in zip(docs, ranks, strict=True):
        sides[rank in chosen].append(doc)
    return "".join(sides[0]), "".join(sides[1])


def tokens(text: str, tokenizer: Tokenizer, cache_dir: str | Path) -> np.ndarray:
    """Return the text's ids, uint16 [tokens], memory-mapped from `tokens-<hash>.npy` in `cache_dir` if it exists.

    The hash is that of text and tokenizer. Else the file is written, if it can be. Two entries before the ids are their
    CRC-32, low half first.
    """
    path = Path(cache_dir) / f"tokens-{_hash(text, tokenizer.fingerprint)}.npy"
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
        if stored.dtype == np.uint16 and stored.ndim == 1 and (stored[:2] == _checksum(stored[2:])).all():
            return stored[2:]
    except (OSError, ValueError, EOFError):
        pass
    ids = tokenizer.encode(text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, lambda file: np.save(file, np.concatenate([_checksum(ids), ids])))
    except OSError:
        pass
    return ids


def batch(tokens: np.ndarray | Mixture, step: int, batch_size: int, block_size: int, seed: int, stream: int = TRAIN
          ) -> tuple[np.ndarray, np.ndarray]:
    """Return (x, y), int32 [batch_size, block_size] each: windows at random offsets, and the same one token later.

    The offsets are a pure function of (seed, stream, step), uniform over all windows of a text that fit. Raises
    UserError unless each text has more than block_size tokens.
    """
    parts, weights = (tokens.parts, tokens.weights) if isinstance(tokens, Mixture) else ((tokens,), (1.0,))
    for part in parts:
        _check_length(part, block_size, "text")
    # The second half of the words chooses the text, so that a single one is drawn from as if there was no choice.
    offsets, choices = np.split(random.words(2 * batch_size, seed, stream, step), 2)
    edges = np.cumsum([weight * len(part) for part, weight in zip(parts, weights, strict=True)])
    chosen = np.searchsorted(edges[:-1], (choices >> np.uint64(11)) * 2.0**-53 * edges[-1], side="right")
    windows = np.empty((batch_size, block_size + 1), np.int32)
    for row, offset, i in zip(windows, offsets.tolist(), chosen, strict=True):
        start = offset % (len(parts[i]) - block_size)
        row[:] = parts[i][start : start + block_size + 1]
    return np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:])


def given_tokenizer(name: str, vocab_size: int) -> Tokenizer:
    """Return the tokenizer that --tokenizer names. Raises UserError where it is not of that size."""
    tokenizer = Tokenizer.of(texts.sent.get(name, name))
    if tokenizer.vocab_size != vocab_size:
        raise UserError(f"--vocab-size {vocab_size}: the vocabulary of {name} has {tokenizer.vocab_size} tokens; leave "
                        f"--vocab-size out")
    return tokenizer


def load(config: DataConfig, vocab_size: int, block_size: int, cache_dir: str | Path, seed: int,
         tokenizer: Tokenizer | None = None, say: Callable[[str], object] = str, warn: Callable[[str], object] = str
         ) -> Dataset:
    """Read, split and tokenize the texts.

    Without validation text, `seed` sets documents of each text apart. Without a tokenizer, the one that `config` names
    is taken, or one of `vocab_size` is trained on the training text and kept in `cache_dir`. say, warn: are told what a
    user should know. Raises UserError for bad sources, for texts of fewer than block_size + 1 tokens, and for a
    tokenizer of another size.
    """
    sources = texts.sources(config.data)
    wholes = [texts.read(source.name, config.format) for source in sources]
    if config.val_data is None:
        trains, vals = zip(*(split_documents(whole, seed=seed, say=say, name=str(source))
                             for source, whole in zip(sources, wholes, strict=True)), strict=True)
    else:
        trains, vals = tuple(wholes), (texts.read(config.val_data, config.format),)
        if vals[0] in trains:
            warn("warning: the validation text is a training text, too, so its loss tells nothing of new text; leave "
                 "--val-data out, and a tenth is set apart")
    if tokenizer is None and config.tokenizer:
        tokenizer = given_tokenizer(config.tokenizer, vocab_size)
        say(f"the vocabulary is that of {config.tokenizer}")
    tokenizer = tokenizer or _cached_tokenizer("".join(trains), vocab_size, Path(cache_dir))
    weights = [source.weight for source in sources]
    sides: list[np.ndarray | Mixture] = []
    for side, what in ((trains, "training text"), (vals, "validation text")):
        parts = [tokens(text, tokenizer, cache_dir) for text in side]
        for part, source in zip(parts, sources, strict=False):
            _check_length(part, block_size, what + (f" of {source}" if len(parts) > 1 else ""))
        sides.append(Mixture(parts, weights) if len(parts) > 1 else parts[0])
    chat = config.format != "text" and any(map(formats.is_chat, trains))
    named = () if len(sources) == 1 else (repr(weights),)
    prompts = CHAT if chat else first_words("".join(vals))
    return Dataset(tokenizer, sides[0], sides[1], _hash(*trains, *vals, *named), chat, prompts)


def _cached_tokenizer(text: str, vocab_size: int, cache_dir: Path) -> Tokenizer:
    path = cache_dir / f"tokenizer-{_hash(text, str(vocab_size))}.json"
    try:
        if (tokenizer := Tokenizer.load(path)).vocab_size == vocab_size:
            return tokenizer
    except UserError:  # not there yet, or damaged
        pass
    tokenizer = Tokenizer.train(text, vocab_size)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        tokenizer.save(path)
    except (OSError, UserError):
        pass
    return tokenizer


def _check_length(tokens: np.ndarray, block_size: int, name: str) -> None:
    if len(tokens) <= block_size:
        raise UserError(f"the {name} has {len(tokens):,} tokens, but a block of {block_size:,} needs at least "
                        f"{block_size + 1:,}; give more text or a smaller block size")


def _checksum(ids: np.ndarray) -> np.ndarray:
    return np.array(divmod(zlib.crc32(ids.data), 1 << 16)[::-1], np.uint16)


def _hash(*parts: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        raw = part.encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()
