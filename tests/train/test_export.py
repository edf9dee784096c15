"""Exports of a trained model: one file, and a folder that a GPT-2 of others computes the same from."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from helios.backends import get_backend
from helios.errors import UserError
from helios.model import GPT, GPTConfig, files
from helios.train import checkpoint, export
from helios.train.data import Dataset
from helios.train.export import Exported
from helios.train.tokenizer import END, USER

from .runs import Make

CONFIG = GPTConfig(vocab_size=300, block_size=16, n_layer=2, n_head=4, n_embd=32, softcap=0.0, ffn_dim=80)


@pytest.fixture
def model(dataset: Dataset) -> Exported:
    """A GPT-2 of wild weights, whose layer norms count."""
    draw = np.random.default_rng(0)
    state = {name: (value + 0.2 * draw.standard_normal(value.shape)).astype(np.float32)
             for name, value in GPT(CONFIG, "cpu_ref").state_dict().items()}
    return Exported(CONFIG, state, dataset.tokenizer, True, "some_run", 12)


def logits(model: Exported, tokens: np.ndarray) -> np.ndarray:
    ours = GPT(model.config, "cpu_ref")
    ours.load_state_dict(model.state)
    return ours(tokens).numpy()


def same(a: Exported, b: Exported) -> None:
    assert (a.config, a.tokenizer.fingerprint, *a[3:]) == (b.config, b.tokenizer.fingerprint, *b[3:])
    assert a.state.keys() == b.state.keys()
    assert all(np.array_equal(value, b.state[name]) for name, value in a.state.items())


def test_a_file_holds_the_model_and_its_vocabulary(model: Exported, tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(export.pack(model))
    same(export.load(path), model)
    assert export.pack(export.load(path)) == path.read_bytes()  # so that an upload that was cut short goes on
    assert np.array_equal(GPT.load(path, "cpu_ref").state_dict()["wte.weight"], model.state["wte.weight"])
    assert len(export.pack(model, "bf16")) < len(export.pack(model))
    GPT(CONFIG, "cpu_ref").save(path)
    with pytest.raises(UserError, match="holds a model without chat, run_id, step, tokenizer; write it with helios-ex"):
        export.load(path)


def test_a_file_whose_parts_do_not_belong_together(model: Exported, tmp_path: Path) -> None:
    path, config = tmp_path / "model", GPTConfig.from_dict(CONFIG.to_dict() | {"vocab_size": 99})
    about = {"tokenizer": model.tokenizer.json().decode(), "chat": "true", "run_id": "r", "step": "1"}
    small = GPT(config, "cpu_ref").state_dict()
    for cfg, state, wrong, said in ((config, small, {}, "its vocabulary has 300 tokens, and its model 99"),
                                    (CONFIG, model.state, {"step": "x"}, "damaged: chat or step"),
                                    (CONFIG, model.state, {"chat": "{"}, "damaged: chat or step"),
                                    (CONFIG, model.state, {"tokenizer": "{"}, "is damaged or no tokenizer.json")):
        path.write_bytes(files.pack(cfg, state, about | wrong))
        with pytest.raises(UserError, match=said):
            export.load(path)


def test_the_checkpoint_that_is_meant(make: Make, tmp_path: Path) -> None:
    loop = make(get_backend("cpu_ref"), steps=6, checkpoint_interval=2)
    (tmp_path / "run" / "config.json").write_text(json.dumps(
        {"run_id": "its_id", "model": {}, "train": {}, "data": {}, "chat": False}))
    loop.run()
    run = loop.records.path
    assert export.find(run)[0].state["step"] == 6 and export.find(run, 4)[0].state["step"] == 4
    assert export.find(run / "checkpoints" / "step-000002")[0].state["step"] == 2
    with pytest.raises(UserError, match=r"--step 5: .* no checkpoint of that step; there are those of 2, 4, 6"):
        export.find(run, 5)
    found = export.of_checkpoint(export.find(run, 4)[0])
    assert (found.run_id, found.step, found.chat) == ("its_id", 4, False)
    assert found.config.to_dict() == loop.config.model.to_dict()
    weights = safetensors.numpy.load_file(run / "checkpoints" / "step-000004" / checkpoint.MODEL)
    assert all(np.array_equal(value, weights[name]) for name, value in found.state.items())
    (run / "checkpoints" / "step-000006" / checkpoint.MODEL).write_bytes(b"")
    last, problems = export.find(run)
    assert last.state["step"] == 4 and "is truncated" in problems[0]
    with pytest.raises(UserError, match="is truncated"):
        export.find(run, 6)


# -- Hugging Face -----------------------------------------------------------------------------------------------------
def gpt2(folder: Path, tokens: np.ndarray) -> np.ndarray:
    """GPT-2 as its paper and config.json say, in numpy: logits [B, T, V] from the files of a folder."""
    cfg = json.loads((folder / "config.json").read_text())
    w = {name: value.astype(np.float64) for name, value in
         safetensors.numpy.load_file(folder / "model.safetensors").items()}
    assert cfg["activation_function"] == "gelu_new" and not cfg["tie_word_embeddings"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        x /= np.sqrt((x * x).mean(-1, keepdims=True) + cfg["layer_norm_epsilon"])
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def conv1d(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    b, t = tokens.shape
    x = w["transformer.wte.weight"][tokens] + w["transformer.wpe.weight"][:t]
    for i in range(cfg["n_layer"]):
        at = f"transformer.h.{i}"
        q, k, v = (part.reshape(b, t, cfg["n_head"], -1).swapaxes(1, 2) for part in
                   np.split(conv1d(norm(x, f"{at}.ln_1"), f"{at}.attn.c_attn"), 3, -1))
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]) + np.triu(np.full((t, t), -np.inf), 1)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        out = (p / p.sum(-1, keepdims=True) @ v).swapaxes(1, 2).reshape(b, t, -1)
        x = x + conv1d(out, f"{at}.attn.c_proj")
        h = conv1d(norm(x, f"{at}.ln_2"), f"{at}.mlp.c_fc")
        assert h.shape[-1] == cfg["n_inner"]
        h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        x = x + conv1d(h, f"{at}.mlp.c_proj")
    return norm(x, "transformer.ln_f") @ w["lm_head.weight"].T


TOKENS = np.random.default_rng(1).integers(0, CONFIG.vocab_size, (3, CONFIG.block_size))


def test_gpt2_computes_the_same_from_the_folder(model: Exported, tmp_path: Path) -> None:
    export.write_hf(model, tmp_path / "new" / "hf")
    assert os.listdir(tmp_path / "new") == ["hf"]
    np.testing.assert_allclose(gpt2(tmp_path / "new" / "hf", TOKENS), logits(model, TOKENS), rtol=0, atol=1e-4)
    assert (tmp_path / "new" / "hf" / "tokenizer.json").read_bytes() == model.tokenizer.json()


def test_transformers_computes_the_same_from_the_folder(model: Exported, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed, and only this test needs it")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed; only this test needs it")
    export.write_hf(model, tmp_path / "hf")
    theirs, about = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(about.values()), about  # missing keys, unexpected ones…
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", trust_remote_code=False).eval()
    with torch.no_grad():
        found = theirs(torch.from_numpy(TOKENS)).logits.numpy()
    np.testing.assert_allclose(found, logits(model, TOKENS), rtol=0, atol=1e-4)

    vocabulary = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf", trust_remote_code=False)
    text = " Größe\n\n, 'tis  <|user|> I'll <|assistant|>.<|end_of_text|>"
    ids = model.tokenizer.encode(text).tolist()
    assert vocabulary(text)["input_ids"] == ids and vocabulary.decode(ids) == text
    assert vocabulary.eos_token_id == model.tokenizer.id(END)
    assert theirs.generation_config.eos_token_id == [model.tokenizer.id(mark) for mark in (END, USER)]
    prompt = torch.tensor([ids[:8]])
    with torch.no_grad():
        said = theirs.generate(prompt, do_sample=False, max_new_tokens=8, eos_token_id=-1)[0, 8:].tolist()
    ours = GPT(model.config, "cpu_ref")
    ours.load_state_dict(model.state)
    assert said == ours.generate(prompt.numpy(), 8, temperature=0.0)[0, 8:].tolist()


@pytest.mark.parametrize("dtype, theirs", [("bf16", "bfloat16"), ("f16", "float16")])
def test_a_folder_in_fewer_bits(model: Exported, tmp_path: Path, dtype: str, theirs: str) -> None:
    export.write_hf(model._replace(chat=False), tmp_path / "hf", dtype)
    raw = (tmp_path / "hf" / "model.safetensors").read_bytes()
    assert {t["dtype"] for _, t in safetensors.deserialize(raw)} == {dtype.upper()}
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["torch_dtype"] == theirs


def test_a_folder_keeps_the_dropouts(model: Exported, tmp_path: Path) -> None:
    changes = {"dropout": 0.1, "attn_dropout": 0.2, "embd_dropout": 0.3, "activation": "same: gelu(x)"}
    export.write_hf(model._replace(config=GPTConfig.from_dict(CONFIG.to_dict() | changes)), tmp_path / "hf")
    about = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert [about[f"{name}_pdrop"] for name in ("attn", "resid", "embd")] == [0.2, 0.1, 0.3]


@pytest.mark.parametrize("changes, said", [
    ({"softcap": 30.0}, ["softcap is 30, and 0 there"]),
    ({"activation": "swiglu"}, ["activation is swiglu, and gelu there"]),
    ({"logit_softcap": 12.5}, ["logit_softcap is 12.5, and 0 there"]),
    ({"dropout": 0.1, "mlp_dropout": 0.2}, ["resid_dropout is 0.1 and mlp_dropout 0.2, and one value there"]),
    ({"norm": "rms"}, ["norm is rms, and layer there"]), ({"qk_norm": True}, ["qk_norm is true, and false there"]),
    ({"activation": "gelu,silu", "softcap": 5.0}, ["softcap is 5", "activation is gelu,silu"])])
def test_a_model_unlike_gpt2_is_not_written(model: Exported, tmp_path: Path, changes: dict[str, Any], said: list[str]
                                            ) -> None:
    config = GPTConfig.from_dict(CONFIG.to_dict() | changes)
    with pytest.raises(UserError) as caught:
        export.write_hf(model._replace(config=config), tmp_path / "hf")
    assert all(part in str(caught.value) for part in said) and not any(tmp_path.iterdir())


def test_a_folder_is_new(model: Exported, tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    export.check_folder(tmp_path / "hf")
    export.write_hf(model, tmp_path / "hf")  # an empty one will do
    before = {path.name: path.read_bytes() for path in (tmp_path / "hf").iterdir()}
    with pytest.raises(UserError, match="is not empty"):
        export.check_folder(tmp_path / "hf")
    with pytest.raises(UserError, match="cannot write"):
        export.write_hf(model, tmp_path / "hf")
    with pytest.raises(UserError, match="is a file"):
        export.check_folder(tmp_path / "hf" / "config.json" / "x")
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "hf").iterdir()}
    assert os.listdir(tmp_path) == ["hf"]
