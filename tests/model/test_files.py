"""The model as nanoGPT's and Hugging Face's users know it: called, generating, in one file."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from helios.backends.backend import Backend
from helios.errors import UserError
from helios.model import GPT, GPTConfig, sample

CONFIG = GPTConfig(vocab_size=31, block_size=8, n_layer=1, n_head=2, n_embd=16, activation="swiglu")
TOKENS = np.array([[1, 2, 3], [4, 5, 6]])


def test_a_model_is_called_and_generates(backend: Backend) -> None:
    model = GPT(CONFIG, backend, seed=1)
    assert np.array_equal(model(TOKENS).numpy(), model.logits(TOKENS).numpy())
    assert [id(p) for p in model.parameters()] == [id(p) for _, p in model.named_parameters()]
    found = model.generate(TOKENS, 9, temperature=0.7, top_k=5, seed=3)  # past block_size
    assert found.shape == (2, 12) and found.dtype == np.int32 and np.array_equal(found[:, :3], TOKENS)
    assert found[:, 3:].tolist() == sample(model, TOKENS.tolist(), 9, 0.7, 5, 3)
    assert np.array_equal(model.generate(TOKENS.tolist(), 0), TOKENS)
    with pytest.raises(ValueError, match=r"generate: expected ints \[B, T\], got int64 \(3,\)"):
        model.generate(TOKENS[0], 1)


def test_a_saved_model_is_the_same_on_every_backend(backend: Backend, tmp_path: Path) -> None:
    model = GPT(CONFIG, backend, seed=1)
    model.save(tmp_path / "model.safetensors")
    for device in (backend, "cpu_ref"):
        loaded = GPT.load(tmp_path / "model.safetensors", device)
        assert loaded.config == CONFIG
        assert all(np.array_equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_deep_copy_of_a_model_is_apart(backend: Backend) -> None:
    model = GPT(CONFIG, backend, seed=1).eval()
    model.generate(TOKENS, 1)
    other = copy.deepcopy(model)
    assert np.array_equal(other(TOKENS).numpy(), model(TOKENS).numpy()) and not other.training
    backend.upload(other.weights["wte.weight"].data, np.zeros((31, 16), np.float32))
    assert model.weights["wte.weight"].numpy().any()
    if backend.name == "vulkan":
        with pytest.raises(TypeError, match="state_dict"):
            pickle.dumps(model)


def test_a_damaged_or_foreign_file_is_a_users_error(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    GPT(CONFIG, "cpu_ref").save(path)
    whole = path.read_bytes()
    for position in (*range(0, len(whole), 397), len(whole) - 1):  # in the header, the config and the weights
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1:])
        with pytest.raises(UserError, match=r"model\.safetensors"):
            GPT.load(path, "cpu_ref")
    for length in (0, 5, 400, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="damaged, or no file of safetensors"):
            GPT.load(path, "cpu_ref")
    safetensors.numpy.save_file({"a": np.zeros(3)}, path)
    with pytest.raises(UserError, match=r"expected a model written by GPT.save\(\)"):
        GPT.load(path, "cpu_ref")
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(UserError, match="cannot read the model"):
            GPT.load(missing, "cpu_ref")
