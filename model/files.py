"""A model in one file: weights in safetensors, with the config and a checksum in its metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from helios.errors import UserError
from helios.files import write_atomic
from helios.model.config import GPTConfig

FORMAT = "helios gpt 1"


def save(path: str | Path, config: GPTConfig, state: Mapping[str, np.ndarray]) -> None:
    """Write a model, whole or not at all. Raises OSError."""
    text = json.dumps(config.to_dict())
    raw = safetensors.numpy.save({name: np.ascontiguousarray(value) for name, value in state.items()},
                                 {"format": FORMAT, "config": text, "sha256": _digest(text, state)})
    write_atomic(path, lambda file: file.write(raw))


def load(path: str | Path) -> tuple[GPTConfig, dict[str, np.ndarray]]:
    """Return the config and the state_dict that save() wrote. Raises UserError where the file cannot be read, is
    damaged, or was written by something else."""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            about = file.metadata() or {}
            if about.get("format") != FORMAT:
                raise UserError(f"{path}: expected a model written by GPT.save(), found other safetensors")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
    except OSError as error:
        raise UserError(f"cannot read the model {path}: {error.strerror or error}") from None
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: damaged, or no file of safetensors ({error})") from None
    if about.get("sha256") != _digest(about.get("config", ""), state):
        raise UserError(f"{path}: damaged: its checksum is not that of its contents; take another copy")
    return GPTConfig.from_dict(json.loads(about["config"])), state


def _digest(config: str, state: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(config.encode())
    for name in sorted(state):
        digest.update(f"{name} {state[name].shape}".encode() + np.ascontiguousarray(state[name]).tobytes())
    return digest.hexdigest()
