"""The model as nanoGPT's and Hugging Face's users know it: called, generating, in one file."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import zstandard

from helios.backends.backend import Backend
from helios.errors import UserError
from helios.model import GPT, GPTConfig, files, sample

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


def test_a_file_keeps_what_else_it_is_given(tmp_path: Path) -> None:
    state, about = GPT(CONFIG, "cpu_ref").state_dict(), {"tokenizer": "Größe\n", "step": "7"}
    raw = files.pack(CONFIG, state, about)
    assert raw == files.pack(CONFIG, dict(reversed(state.items())), dict(reversed(about.items())))
    assert int.from_bytes(raw[:8], "little") % 8 == 0  # values lie where they may be used in place
    path = tmp_path / "model"
    path.write_bytes(raw)
    assert files.load(path).about == about
    with safetensors.safe_open(path, "numpy") as file:  # the library reads it, too
        assert file.metadata()["step"] == "7" and np.array_equal(file.get_tensor("ln_f.bias"), state["ln_f.bias"])
    GPT(CONFIG, "cpu_ref").save(path)
    assert files.load(path).about == {}
    for old, new in ((b'"step":"7"', b'"step":"8"'), (b'"dtype":"F32"', b'"dtype":"I32"')):
        path.write_bytes(raw.replace(old, new))
        with pytest.raises(UserError, match="its checksum is not that of its contents"):
            files.load(path)


def test_a_file_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    state = GPT(CONFIG, "cpu_ref").state_dict()
    config = json.dumps(CONFIG.to_dict())
    digest = hashlib.sha256(config.encode())
    for name in sorted(state):
        digest.update(f"{name} {state[name].shape}".encode() + state[name].tobytes())
    safetensors.numpy.save_file(state, tmp_path / "model", {"format": "helios gpt 1", "config": config,
                                                            "sha256": digest.hexdigest()})
    found = GPT.load(tmp_path / "model", "cpu_ref")
    assert found.config == CONFIG and np.array_equal(found.state_dict()["wte.weight"], state["wte.weight"])


def fits(x: np.ndarray, bits: int, least: int) -> np.ndarray:
    """x with that many significant bits, of exponents from `least` on; to nearest, ties to even."""
    unit = 2.0 ** (np.maximum(np.frexp(x.astype(np.float64))[1] - 1, least) - bits + 1)
    return np.rint(x / unit) * unit


@pytest.mark.parametrize("dtype, bits, least", [("f32", 24, -126), ("bf16", 8, -126), ("f16", 11, -14)])
def test_weights_in_fewer_bits(tmp_path: Path, dtype: str, bits: int, least: int) -> None:
    draw = np.random.default_rng(0)
    state = {name: (np.ldexp(value, draw.integers(-20, 12, value.shape))).astype(np.float32)
             for name, value in GPT(CONFIG, "cpu_ref").state_dict().items()}
    state["ln_f.weight"][:4] = 1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-11, 1 + 3 * 2.0**-11  # ties
    raw = files.pack(CONFIG, files.rounded(state, dtype))
    sizes = []
    for form in (raw, files.compressed(raw)):
        (tmp_path / "model").write_bytes(form)
        sizes.append(len(form))
        model = GPT.load(tmp_path / "model", "cpu_ref")
        for name, value in model.state_dict().items():
            assert value.dtype == np.float32 and np.array_equal(value, fits(state[name], bits, least)), name
    assert sizes[1] < sizes[0] < 4096 + sum(v.size for v in state.values()) * (4 if dtype == "f32" else 2)
    flipped = raw.replace(b'"BF16"', b'"F16"') if dtype == "bf16" else raw.replace(b'"F16"', b'"BF16"')
    if dtype != "f32":  # the same bytes would be other numbers
        (tmp_path / "model").write_bytes(flipped)
        with pytest.raises(UserError, match="damaged"):
            GPT.load(tmp_path / "model", "cpu_ref")


@pytest.mark.parametrize("dtype, value, said", [
    ("f16", 65520.0, "give --dtype bf16 or f32"), ("f16", -1e30, "-1e+30"), ("bf16", 3.4e38, "give --dtype f32"),
    ("f32", np.inf, "ln_f.bias holds inf"), ("bf16", np.nan, "nan")])
def test_values_that_do_not_fit_are_refused(dtype: str, value: float, said: str) -> None:
    state = {"ln_f.bias": np.array([0, 65504, value, 1], np.float32)}
    with pytest.raises(UserError, match=re.escape(said)):
        files.rounded(state, dtype)


def test_a_damaged_compressed_file_is_a_users_error(tmp_path: Path) -> None:
    whole, path = files.compressed(files.pack(CONFIG, GPT(CONFIG, "cpu_ref").state_dict())), tmp_path / "model"
    for position in (*range(0, len(whole), 397), len(whole) - 1):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1:])
        with pytest.raises(UserError, match="model"):
            GPT.load(path, "cpu_ref")
    for length in (3, 5, 400, len(whole) - 5):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="damaged, or no file of safetensors"):
            GPT.load(path, "cpu_ref")


def test_a_file_may_lie(tmp_path: Path) -> None:
    """Whoever makes one can make its checksum right, too."""
    path, state = tmp_path / "model", GPT(CONFIG, "cpu_ref").state_dict()

    def lie(about: dict[str, str] | None) -> None:
        """Write the weights with other metadata."""
        known = {"format": files.FORMAT, "config": json.dumps(CONFIG.to_dict())} | (about or {})
        known["sha256"] = files._digest(known, state)
        path.write_bytes(safetensors.numpy.save(state, known if about is not None else None))

    lie({})
    assert GPT.load(path, "cpu_ref").config == CONFIG
    huge = json.dumps(CONFIG.to_dict() | {"n_layer": 1000, "n_embd": 10**6})
    for about, said in ((None, "found other safetensors"), ({"format": "helios gpt 2"}, "found helios gpt 2"),
                        ({"config": "{"}, "is that of no model"), ({"config": "[7]"}, "is that of no model"),
                        ({"config": 5000 * "["}, "is that of no model"), ({"config": huge}, "parameters, and the mod"),
                        ({"config": '{"n_layers": 1}'}, "is that of no model: unknown setting")):
        lie(about)
        with pytest.raises(UserError, match=f"model: .*{said}"):
            GPT.load(path, "cpu_ref")


@pytest.mark.parametrize("told", [True, False])
def test_a_file_that_would_fill_the_memory_is_not_decompressed(tmp_path: Path, told: bool) -> None:
    bomb = zstandard.ZstdCompressor(write_content_size=told).compress(bytes(50_000_000))
    assert len(bomb) < 5000
    (tmp_path / "model").write_bytes(bomb)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="damaged, or no file of safetensors"):
            GPT.load(tmp_path / "model", "cpu_ref")
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
