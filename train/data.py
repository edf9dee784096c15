"""The way from a text to batches: documents, their split, cached token files, random windows."""

import hashlib
import re
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from helios import random
from helios.errors import UserError
from helios.files import write_atomic
from helios.train import synth
from helios.train.tokenizer import END, Tokenizer

TRAIN, EVAL = 0, 1  # streams of random offsets, independent of each other


class Dataset(NamedTuple):
    """What a run trains on. text_hash: of both texts, by which a resumed run knows whether they changed."""

    tokenizer: Tokenizer
    train: np.ndarray  # uint16 [tokens]
    val: np.ndarray  # uint16 [tokens]
    text_hash: str


def read_text(path: str | Path) -> str:
    """Return a file's text with its own line ends. Raises UserError if it cannot be read, is empty or not UTF-8."""
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: byte {error.object[error.start]:#04x} at offset {error.start:,}; "
                        f"convert it to UTF-8") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', error)}; give a UTF-8 text file") from error
    if not text or text.isspace():
        raise UserError(f"{path} is empty; give a UTF-8 text file")
    return text


def source_text(source: str | Path) -> str:
    """Return the text of a file, or of the embedded corpus for "synth:SIZE[:SEED]". Raises UserError."""
    made = embedded(source)
    return read_text(source) if made is None else synth.corpus(*made)


def embedded(source: str | Path) -> tuple[int, int] | None:
    """Return the size in bytes and the seed of "synth:SIZE[:SEED]"; None for a file. Raises UserError."""
    if not str(source).startswith("synth:"):
        return None
    size, _, seed = str(source).removeprefix("synth:").partition(":")
    if not re.fullmatch(r"\d*", seed, re.ASCII):
        raise UserError(f"the seed in {source} is no number; write synth:2MB or synth:2MB:7")
    return synth.parse_size(size), int(seed or 0)


def documents(text: str) -> list[str]:
    """Return the text cut after each <|end_of_text|> and the white space behind it; joined, they are the text."""
    ends = [m.end() for m in re.finditer(re.escape(END) + r"\s*", text)]
    return [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True) if a < b]


def split_documents(text: str, fraction: float = 0.1, seed: int = 0) -> tuple[str, str]:
    """Return (training text, validation text): every document is whole, in one of them, in the old order.

    Documents are ranked by a hash of the seed and their text, and the lowest `fraction` is for validation, at least one
    and not all. So copies of a document stay together, and the split of a growing file hardly changes. Raises UserError
    if there are not two different documents.
    """
    docs = documents(text)
    ranks = [hashlib.blake2b(d.strip().encode(), digest_size=8, key=str(seed).encode()).digest() for d in docs]
    order = sorted(set(ranks))
    if len(order) < 2:
        raise UserError(f"the text is a single document, so nothing can be set apart for validation; give --val-data, "
                        f"or end each document with {END}")
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


def batch(tokens: np.ndarray, step: int, batch_size: int, block_size: int, seed: int, stream: int = TRAIN
          ) -> tuple[np.ndarray, np.ndarray]:
    """Return (x, y), int32 [batch_size, block_size] each: windows at random offsets, and the same one token later.

    The offsets are a pure function of (seed, stream, step), uniform over all windows that fit. Raises UserError unless
    `tokens` [N] has N > block_size.
    """
    _check_length(tokens, block_size, "text")
    offsets = (random.words(batch_size, seed, stream, step) % np.uint64(len(tokens) - block_size)).astype(np.int64)
    windows = np.asarray(tokens[offsets[:, None] + np.arange(block_size + 1)], np.int32)
    return np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:])


def load(data: str | Path, val_data: str | Path | None, vocab_size: int, block_size: int, cache_dir: str | Path,
         seed: int, tokenizer: Tokenizer | None = None) -> Dataset:
    """Read, split and tokenize the texts. `data` and `val_data` are files or "synth:SIZE[:SEED]".

    Without `val_data`, `seed` sets documents of `data` apart. Without a tokenizer, one of `vocab_size` is trained on
    the training text, or taken from `cache_dir`, where it is kept. Raises UserError for bad sources, and for texts of
    fewer than block_size + 1 tokens.
    """
    train_text = source_text(data)
    if val_data is None:
        train_text, val_text = split_documents(train_text, seed=seed)
    else:
        val_text = source_text(val_data)
    tokenizer = tokenizer or _cached_tokenizer(train_text, vocab_size, Path(cache_dir))
    train, val = tokens(train_text, tokenizer, cache_dir), tokens(val_text, tokenizer, cache_dir)
    _check_length(train, block_size, "training text")
    _check_length(val, block_size, "validation text")
    return Dataset(tokenizer, train, val, _hash(train_text, val_text))


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
