"""helios-export and helios-sample --from as a user meets them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from helios.cli import export, sample, train
from helios.model import GPT
from helios.train import checkpoint

from ..commands import invoke as run
from ..commands import refused


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 12 steps with checkpoints at 6 and 12, of a model that is a GPT-2."""
    path = tmp_path_factory.mktemp("done") / "run"
    assert run(train.main, "--preset", "tiny", "--backend", "cpu_ref", "--softcap", "0", "--run-dir", path
               ).exit_code == 0
    return path


def said(*source: str | Path) -> str:
    result = run(sample.main, *source, "--backend", "cpu_ref", "--tokens", "8", "--prompt", "Who are you?")
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("form", [[], ["--zstd"]])
@pytest.mark.parametrize("step", [[], ["--step", "6"]])
def test_the_same_is_said_from_the_file(done: Path, tmp_path: Path, form: list[str], step: list[str]) -> None:
    out = tmp_path / "model.of.any.name"
    result = run(export.main, done, *step, "--out", out, *form)
    number = int(step[-1]) if step else 12
    folder = done / "checkpoints" / f"step-{number:06d}"
    assert result.exit_code == 0, result.output
    run_id = json.loads((done / "config.json").read_text())["run_id"]
    assert result.stdout.startswith(f"step {number} of {run_id}: checkpoint 0.5 MB → inference 0.2 MB")
    assert ("→ compressed" in result.stdout) == bool(form) and result.stdout.count("\n") == 1
    whole = sum(path.stat().st_size for path in folder.iterdir())
    assert out.stat().st_size < whole / 2
    assert said("--from", out) == said("--run", folder)
    assert run(sample.main, "--from", out, "--raw", "--prompt", "x", "--tokens", "1", "--backend", "cpu_ref"
               ).stdout.startswith("x")


def test_fewer_bits_and_a_folder(done: Path, tmp_path: Path) -> None:
    for dtype in ("bf16", "f16"):
        assert run(export.main, done, "--out", tmp_path / dtype, "--dtype", dtype, "--zstd").exit_code == 0
        assert said("--from", tmp_path / dtype).startswith("<|user|> Who are you? <|assistant|> ")
    result = run(export.main, done, "--out", tmp_path / "hf", "--to", "hf")
    assert result.exit_code == 0 and "checkpoint 0.5 MB → model.safetensors 0.2 MB" in result.stdout
    assert {path.name for path in (tmp_path / "hf").iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def test_a_damaged_last_checkpoint_is_told(done: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(done, tmp_path / "copy")
    (copy / "checkpoints" / "step-000012" / checkpoint.MODEL).write_bytes(b"")
    result = run(export.main, copy, "--out", tmp_path / "model")
    assert result.exit_code == 0 and result.stdout.startswith("step 6 of ")
    assert "is truncated" in result.stderr and "an earlier one is taken" in result.stderr


def test_what_a_user_can_put_right(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = ("--out", tmp_path / "model")
    refused(run(export.main, tmp_path / "nowhere", *out), "is missing")
    refused(run(export.main, done, "--step", "7", *out), "there are those of 6, 12")
    refused(run(export.main, done, "--out", tmp_path), "it is a folder")
    refused(run(export.main, done, "--out", tmp_path / "no" / "model"), "no folder")
    refused(run(export.main, done), "Missing option '--out'")
    refused(run(export.main, done, *out, "--dtype", "int8"), "is not one of 'f32', 'f16', 'bf16'")
    refused(run(export.main, done, *out, "--to", "hf", "--zstd"), "leave --zstd out")
    refused(run(export.main, done, *out, "--to", "hf", "--upload", "http://127.0.0.1:1"), "leave --upload out")
    refused(run(export.main, done, "--to", "hf", "--out", done), "is not empty")
    monkeypatch.delenv("HELIOS_TOKEN", raising=False)
    refused(run(export.main, done, *out, "--upload", "http://127.0.0.1:1"), "HELIOS_TOKEN is not set")
    monkeypatch.setenv("HELIOS_TOKEN", "secret")
    refused(run(export.main, done, *out, "--upload", "board"), "http://")
    refused(run(export.main, done, "--out", tmp_path / "ä", "--upload", "http://127.0.0.1:1"), "a board takes names")
    assert not any(tmp_path.iterdir())
    refused(run(export.main, done, *out, "--upload", "http://127.0.0.1:1"), "does not answer", "goes on", stdout=None)
    refused(run(sample.main, "--prompt", "x"), "give one of --run and --from")
    refused(run(sample.main, "--run", done, "--from", "x", "--prompt", "x"), "give one of --run and --from")
    refused(run(sample.main, "--from", tmp_path / "none", "--prompt", "x"), "cannot read the model")
    refused(run(sample.main, "--from", done / "config.json", "--prompt", "x"), "no file of safetensors")
    weights = done / "checkpoints" / "step-000012" / checkpoint.MODEL
    refused(run(sample.main, "--from", weights, "--prompt", "x"), "found other safetensors")
    GPT.load(tmp_path / "model", "cpu_ref").save(tmp_path / "bare")
    refused(run(sample.main, "--from", tmp_path / "bare", "--prompt", "x"), "write it with helios-export")


@pytest.mark.parametrize(("flags", "said"), [
    ("--activation relu,gelu", "activation is relu,gelu"), ("--norm rms --logit-softcap 5", "norm is rms"),
    ("--logit-softcap 5", "logit_softcap is 5"), ("--qk-norm true", "qk_norm is true"),
    ("--mlp-dropout 0.2", "resid_dropout is 0.1 and mlp_dropout 0.2")])
def test_a_model_that_is_no_gpt2(tmp_path: Path, flags: str, said: str) -> None:
    assert run(train.main, "--preset", "tiny", "--backend", "cpu_ref", *flags.split(), "--steps", "1",
               "--run-dir", tmp_path / "run").exit_code == 0
    refused(run(export.main, tmp_path / "run", "--to", "hf", "--out", tmp_path / "hf"), "softcap is 30", said)
    assert not (tmp_path / "hf").exists()


def test_a_gpt2_with_other_settings(tmp_path: Path) -> None:
    assert run(train.main, "--preset", "tiny", "--backend", "cpu_ref", "--softcap", "0", "--zero-init-outputs", "true",
               "--attn-dropout", "0", "--embd-dropout", "0.2", "--run-dir", tmp_path / "run").exit_code == 0
    assert run(export.main, tmp_path / "run", "--to", "hf", "--out", tmp_path / "hf").exit_code == 0
    about = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert [about[f"{name}_pdrop"] for name in ("attn", "resid", "embd")] == [0, 0.1, 0.2]


def test_a_checkpoint_that_goes_after_it_was_read(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a training under way, which keeps its last ones."""
    copy, of = shutil.copytree(done, tmp_path / "copy"), export.export.of_checkpoint

    def going(found: checkpoint.Checkpoint) -> object:
        checkpoint.remove(found.path)
        return of(found)

    monkeypatch.setattr(export.export, "of_checkpoint", going)
    result = run(export.main, copy, "--out", tmp_path / "model")
    assert result.exit_code == 0 and "checkpoint 0.5 MB → inference 0.2 MB" in result.stdout, result.output
