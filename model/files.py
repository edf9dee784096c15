"""A model in one file: weights in safetensors; in its metadata the config, what else a caller adds, and a checksum. The
whole file may be compressed by zstd."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
import zstandard

from helios.errors import UserError
from helios.files import write_atomic
from helios.model.config import GPTConfig

FORMAT = "helios gpt 1"
OWN = ("format", "config", "sha256")  # entries of the metadata
DTYPES: Mapping[str, Any] = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}
LARGEST = 100  # times as large as its compression may a file be; weights are hardly twice as large
LEVEL = 9  # of zstd: with higher ones the weights, which are nearly random, take much longer and no less space


class Stored(NamedTuple):
    """What a file holds."""

    config: GPTConfig
    state: dict[str, np.ndarray]  # the state_dict, float32
    about: dict[str, str]  # what else the caller of save() gave


def save(path: str | Path, config: GPTConfig, state: Mapping[str, np.ndarray]) -> None:
    """Write a model, whole or not at all. Raises OSError."""
    raw = pack(config, state)
    write_atomic(path, lambda file: file.write(raw))


def pack(config: GPTConfig, state: Mapping[str, np.ndarray], about: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes of a file with these tensors, each of one of DTYPES; equal arguments give equal bytes.
    about: further entries of its metadata, of other names than OWN."""
    known = {"format": FORMAT, "config": json.dumps(config.to_dict()), **(about or {})}
    raw = safetensors.numpy.save({name: np.ascontiguousarray(value) for name, value in state.items()},
                                 known | {"sha256": _digest(known, state)})
    start, header = _header(raw)  # in which the library lets the metadata come in any order
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + raw[start:]


def rounded(state: Mapping[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """Return the tensors in one of DTYPES, rounded to nearest, ties to even. Raises UserError where one holds a value
    that is not finite there."""
    found = {}
    for name, value in state.items():
        with np.errstate(over="ignore"):  # judged below
            found[name] = value.astype(DTYPES[dtype])
        if not (fits := np.isfinite(found[name])).all():
            wider = {"f16": "; give --dtype bf16 or f32", "bf16": "; give --dtype f32"}.get(dtype, "")
            raise UserError(f"{name} holds {value[~fits].flat[0]:g}, for which {dtype} has no finite number{wider}")
    return found


def compressed(raw: bytes) -> bytes:
    """Return the bytes compressed by zstd, with a checksum."""
    return zstandard.ZstdCompressor(LEVEL, write_checksum=True).compress(raw)


def load(path: str | Path) -> Stored:
    """Return what pack() put into a file, compressed or not. Raises UserError where the file cannot be read, is
    damaged, or was written by something else."""
    try:
        raw = Path(path).read_bytes()
        if raw.startswith(zstandard.FRAME_HEADER):
            raw = _decompressed(raw)
        tensors = safetensors.deserialize(raw)
    except OSError as error:
        raise UserError(f"cannot read the model {path}: {error.strerror or error}") from None
    except (safetensors.SafetensorError, zstandard.ZstdError) as error:
        raise UserError(f"{path}: damaged, or no file of safetensors ({error})") from None
    about = _header(raw)[1].get("__metadata__") or {}
    if about.get("format") != FORMAT:
        raise UserError(f"{path}: expected a model written by GPT.save() or helios-export, found "
                        f"{about.get('format', 'other safetensors')}")
    types = {name.upper(): dtype for name, dtype in DTYPES.items()}  # as safetensors names them
    state = {name: np.frombuffer(t["data"], types[t["dtype"]]).reshape(t["shape"])
             for name, t in tensors if t["dtype"] in types}
    if len(state) != len(tensors) or about.pop("sha256", None) != _digest(about, state):
        raise UserError(f"{path}: damaged: its checksum is not that of its contents; take another copy")
    more = {key: value for key, value in about.items() if key not in OWN}
    try:
        config = GPTConfig.from_dict(dict(json.loads(about["config"])))
    except (KeyError, TypeError, ValueError, RecursionError, UserError) as error:
        raise UserError(f"{path}: its config is that of no model: {error}") from None
    if (held := sum(value.size for value in state.values())) != config.parameters():
        raise UserError(f"{path}: it holds {held:,} parameters, and the model of its config has "
                        f"{config.parameters():,}; take another copy")
    return Stored(config, {name: value.astype(np.float32) for name, value in state.items()}, more)


def _decompressed(raw: bytes) -> bytes:
    """Return what compressed() was given. Raises ZstdError, also where that would be out of all proportion."""
    if zstandard.frame_content_size(raw) > (most := LARGEST * len(raw)):
        raise zstandard.ZstdError(f"more than {LARGEST} times as large as its compression")
    return zstandard.ZstdDecompressor().decompress(raw, max_output_size=most)


def _header(raw: bytes) -> tuple[int, dict[str, Any]]:
    """Return where the values begin in a file of safetensors, and its header."""
    start = 8 + int.from_bytes(raw[:8], "little")
    return start, json.loads(raw[8:start])


def _digest(about: Mapping[str, str], state: Mapping[str, np.ndarray]) -> str:
    """Hash all but the format: first the config, then other metadata, then every tensor."""
    digest = hashlib.sha256(about.get("config", "").encode())
    for key in sorted(about.keys() - set(OWN)):
        digest.update(json.dumps([key, about[key]]).encode())
    for name in sorted(state):
        value = np.ascontiguousarray(state[name])
        kind = "" if value.dtype == np.float32 else f" {value.dtype}"
        digest.update(f"{name} {value.shape}{kind}".encode() + value.tobytes())
    return digest.hexdigest()
