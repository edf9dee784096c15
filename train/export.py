"""A trained model for others: weights, config and vocabulary in one file, without the optimizer, also sent to a board;
or a folder with a GPT-2 for Hugging Face's transformers."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from helios.errors import UserError
from helios.files import obstacle, write_atomic
from helios.model import GPTConfig, files
from helios.model.activations import activation
from helios.model.settings import spelt
from helios.train import checkpoint, directory
from helios.train.checkpoint import Checkpoint
from helios.train.records.client import TOKEN, BoardError, Client, part_of, patiently
from helios.train.records.layout import TOKENIZER, read_config
from helios.train.resume import is_chat, tokenizer_of
from helios.train.samples import TEMPERATURE, TOP_K
from helios.train.tokenizer import END, USER, Tokenizer


class Exported(NamedTuple):
    """All that it takes to continue a prompt, and where it comes from."""

    config: GPTConfig
    state: dict[str, np.ndarray]  # float32
    tokenizer: Tokenizer
    chat: bool  # whether it was trained on conversations
    run_id: str
    step: int


def of_checkpoint(found: Checkpoint) -> Exported:
    """Return what a checkpoint holds of it. Raises UserError where the run's vocabulary is not that of the weights."""
    return Exported(GPTConfig.from_dict(found.state["model"]), found.model, tokenizer_of(found), is_chat(found),
                    read_config(found.path.parent.parent)["run_id"], found.state["step"])


def find(run: str | Path, step: int | None = None) -> tuple[Checkpoint, list[str]]:
    """Return the checkpoint that `run` means, as checkpoint.find does, or the run's of that step.
    Raises UserError, which names those that there are."""
    if step is None:
        return checkpoint.find(run)
    there = checkpoint.directories(directory.run_of(Path(run).absolute()))
    for path in there:
        if checkpoint.step_of(path) == step:
            return checkpoint.find(path)
    steps = ", ".join(str(checkpoint.step_of(path)) for path in there)
    raise UserError(f"--step {step}: {run} has no checkpoint of that step; "
                    + (f"there are those of {steps}" if there else "it has none at all"))


def pack(model: Exported, dtype: str = "f32") -> bytes:
    """Return the bytes of a file with the model, its weights in one of files.DTYPES; equal models give equal bytes.
    Raises UserError where a weight is too large for that."""
    about = {"tokenizer": model.tokenizer.json().decode(), "chat": json.dumps(model.chat), "run_id": model.run_id,
             "step": str(model.step)}
    return files.pack(model.config, files.rounded(model.state, dtype), about)


def load(path: str | Path) -> Exported:
    """Return the model in a file that pack() made, compressed or not. Raises UserError where it holds none."""
    config, state, about = files.load(path)
    if missing := {"tokenizer", "chat", "run_id", "step"} - about.keys():
        raise UserError(f"{path} holds a model without {', '.join(sorted(missing))}; write it with helios-export, "
                        "which adds what a prompt needs")
    tokenizer = Tokenizer.parse(about["tokenizer"].encode(), path)
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(f"{path}: its vocabulary has {tokenizer.vocab_size:,} tokens, and its model "
                        f"{config.vocab_size:,}; take another copy")
    try:
        return Exported(config, state, tokenizer, bool(json.loads(about["chat"])), about["run_id"], int(about["step"]))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged: chat or step: {error}") from None


# -- Hugging Face -----------------------------------------------------------------------------------------------------
HF_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
EPS = 1e-5  # of layer norms, in helios.ops as in GPT-2
GPT2 = {"softcap": 0, "logit_softcap": 0, "norm": "layer", "qk_norm": False}  # what each has


def write_hf(model: Exported, folder: Path, dtype: str = "f32") -> None:
    """Write a new folder with the model as a GPT2LMHeadModel, whole or not at all.

    Raises UserError where GPT-2 has no like of it, where a weight is too large for the dtype, or where the folder
    cannot be made.
    """
    if why := unlike_gpt2(model.config):
        raise UserError(f"the model has no equal among GPT-2s: {'; '.join(why)}; train one with a GPT-2's settings, or "
                        "leave --to hf out")
    cfg, end, p = model.config, model.tokenizer.id(END), model.config.dropouts
    state = files.rounded(gpt2_state(model), dtype)
    config = {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": cfg.vocab_size,
        "n_positions": cfg.block_size, "n_embd": cfg.n_embd, "n_layer": cfg.n_layer, "n_head": cfg.n_head,
        "n_inner": cfg.ffn_dims[0], "activation_function": "gelu_new", "layer_norm_epsilon": EPS,
        "attn_pdrop": p.attn, "resid_pdrop": p.resid, "embd_pdrop": p.embd, "tie_word_embeddings": False,
        "bos_token_id": end, "eos_token_id": end, "torch_dtype": HF_DTYPES[dtype],
    }
    stops = [end, model.tokenizer.id(USER)] if model.chat else end
    sampling = {"bos_token_id": end, "eos_token_id": stops, "pad_token_id": end, "do_sample": True,
                "temperature": TEMPERATURE, "top_k": TOP_K}
    vocabulary = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": cfg.block_size, "bos_token": END,
                  "eos_token": END, "pad_token": END, "clean_up_tokenization_spaces": False}
    as_json = lambda value: json.dumps(value, indent=2).encode() + b"\n"
    contents = {
        "config.json": as_json(config), "generation_config.json": as_json(sampling),
        "tokenizer_config.json": as_json(vocabulary), TOKENIZER: model.tokenizer.json(),
        "model.safetensors": safetensors.numpy.save(state, {"format": "pt"}),
    }
    _write_folder(folder, contents)


def unlike_gpt2(cfg: GPTConfig) -> list[str]:
    """Return each setting that no GPT-2 has, and what it would be there."""
    found = [f"{key} is {spelt(given)}, and {spelt(theirs)} there"
             for key, theirs in GPT2.items() if (given := getattr(cfg, key)) != theirs]
    if any(act.key != activation("gelu").key for act in cfg.activations):
        found.append(f"activation is {cfg.activation}, and gelu there")
    if (p := cfg.dropouts).resid != p.mlp:
        found.append(f"resid_dropout is {p.resid:g} and mlp_dropout {p.mlp:g}, and one value there")
    return found


def gpt2_state(model: Exported) -> dict[str, np.ndarray]:
    """Return the tensors by GPT-2's names. There a matrix of a block leads from its first axis to its second, and has
    a bias, here 0."""
    names = {"ln1": "ln_1", "ln2": "ln_2", "attn.qkv": "attn.c_attn", "attn.out": "attn.c_proj", "mlp.fc1": "mlp.c_fc",
             "mlp.fc2": "mlp.c_proj"}
    found = {}
    for name, value in model.state.items():
        if not name.startswith("blocks."):
            found[name if name.startswith("lm_head") else f"transformer.{name}"] = value
            continue
        _, i, rest = name.split(".", 2)
        layer, _, kind = rest.rpartition(".")
        theirs = f"transformer.h.{i}.{names[layer]}"
        found[f"{theirs}.{kind}"] = value if value.ndim == 1 else np.ascontiguousarray(value.T)
        if value.ndim == 2:
            found[f"{theirs}.bias"] = np.zeros(len(value), np.float32)
    return found


def _write_folder(folder: Path, contents: dict[str, bytes]) -> None:
    folder = folder.absolute()
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        unfinished.mkdir(parents=True)
        for name, content in contents.items():
            write_atomic(unfinished / name, methodcaller("write", content))
        unfinished.rename(folder)  # onto an empty one, too
    except OSError as error:
        raise UserError(f"cannot write {folder}: {obstacle(folder) or error.strerror}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def check_folder(folder: Path) -> None:
    """Raise UserError unless write_hf may make the folder."""
    if found := obstacle(folder):
        raise UserError(f"cannot write {folder}: {found}")
    if folder.exists() and os.listdir(folder):
        raise UserError(f"{folder} is not empty; give --out a new folder")


# -- a board ----------------------------------------------------------------------------------------------------------
PART = 1 << 20  # bytes that are sent at a time
PATIENCE = 90.0  # seconds to wait for a board that has been there and is away
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")  # of a run or file on a board


def check_upload(name: str) -> None:
    """Raise UserError unless a file may have that name on a board."""
    if not NAME.fullmatch(name):
        raise UserError(f"{name}: a board takes names of at most 128 ASCII letters, digits, _ . and -, of which . and "
                        f"- do not come first; give --out such a one")


def upload(client: Client, path: Path, about: Mapping[str, Any], step: int,
           told: Callable[[int], object] = lambda n: None) -> None:
    """Send a file to a board, in parts, as a checkpoint of a step; parts that the board has are not sent again.

    about: the content of the run's config.json, for a board that does not know the run. told: called with the size of
    each part that is there. A board that goes away is waited for. Raises UserError where it stays away or refuses; then
    the same call goes on where this one ended.
    """
    raw, place = path.read_bytes(), f"/api/runs/{about['run_id']}/files/{path.name}"
    whole = {"size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    try:
        _introduce(client, about)  # without patience, for the address may be wrong
        have = part_of(client.get(f"{place}/parts", **whole), "have")
        for i, part in enumerate(raw[start:start + PART] for start in range(0, len(raw), PART)):
            if i not in have:
                checksum = {"X-SHA256": hashlib.sha256(part).hexdigest()}
                patiently(partial(client.request, "PUT", f"{place}/parts/{i}", part, checksum, whole), PATIENCE)
            told(len(part))
        end = json.dumps({**whole, "step": step}).encode()
        patiently(partial(client.request, "POST", place, end, {"Content-Type": "application/json"}), PATIENCE)
    except BoardError as error:
        way_on = f"set {TOKEN} to its token" if error.status == 401 else "the same command goes on where this one ended"
        raise UserError(f"{error}; {way_on}") from error


def _introduce(client: Client, about: Mapping[str, Any]) -> None:
    """Tell the board of the run, if it does not know it."""
    try:
        client.get(f"/api/runs/{about['run_id']}")
    except BoardError as error:
        if error.status != 404:
            raise
        row = {"config": about, "summary": None, "checkpoints": list[Any]()}
        client.post("/api/ingest", {"run_id": about["run_id"], "kind": "run", "rows": [row]})
