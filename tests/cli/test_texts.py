"""Texts of one's own, from the command line: vocabularies, several texts, plain text sampled as such."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import click.testing
import pytest
from click.testing import Result

from helios.cli import sample, train
from helios.train import checkpoint
from helios.train.config import resolve
from helios.train.tokenizer import Tokenizer

from ..commands import invoke, refused

PLAIN = "".join(f"Number {i} came,\nand number {i * 7 % 100} went.\n\n" for i in range(400))
train_tiny = partial(invoke, train.main, "--preset", "tiny", "--backend", "cpu_ref", "--steps", 4)
sampled = partial(invoke, sample.main, "--backend", "cpu_ref", "--tokens", 6)


def final(run: Path) -> bytes:
    last = checkpoint.directories(run)[-1]
    return (last / checkpoint.MODEL).read_bytes() + (last / checkpoint.OPTIMIZER).read_bytes()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on plain text."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "plain.txt").write_text(PLAIN)
    result = train_tiny("--data", folder / "plain.txt", "--vocab-size", 280, "--run-dir", folder / "run")
    assert result.exit_code == 0, result.output
    assert "plain.txt has no document marks (<|end_of_text|>): its last 10% are for validation" in result.output
    return folder / "run"


def test_plain_text_is_sampled_as_such(plain: Path) -> None:
    assert json.loads((plain / "config.json").read_text())["chat"] is False
    samples = [json.loads(line) for line in (plain / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 5 and all(s["prompt"] in PLAIN for s in samples)
    result = sampled("--run", plain, "--prompt", "Number 7")
    assert result.exit_code == 0 and result.stdout.startswith("Number 7") and "<|user|>" not in result.stdout
    assert sampled("--run", plain, "--prompt", "Number 7", "--raw").stdout == result.stdout
    assert sampled("--run", plain, "--prompt", "").exit_code == 0  # from a document's beginning
    long = sampled("--run", plain, "--prompt", PLAIN[:200])
    assert long.exit_code == 0 and long.stderr.endswith(" tokens, and the model sees its last 16\n")


def test_a_run_that_does_not_say_is_one_of_conversations(plain: Path, tmp_path: Path) -> None:
    old = shutil.copytree(plain, tmp_path / "old")
    config = json.loads((old / "config.json").read_text())
    del config["chat"]
    (old / "config.json").write_text(json.dumps(config))
    assert sampled("--run", old, "--prompt", "Hi").stdout.startswith("<|user|> Hi <|assistant|> ")
    assert sampled("--run", old, "--prompt", "Hi", "--raw").stdout.startswith("Hi")


def test_a_terminal_shows_control_characters(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = partial(sampled, "--run", plain, "--prompt", "a\x1b[2J\x9b\r\n\tb", "--tokens", 1)
    assert ask().stdout_bytes.startswith("a\x1b[2J\x9b\r\n\tb".encode())
    monkeypatch.setattr(click.testing._NamedTextIOWrapper, "isatty", lambda self: True, raising=False)
    assert ask().stdout_bytes.startswith(b"a\\x1b[2J\\x9b\\r\n\tb")


def test_a_vocabulary_is_used_again(plain: Path, tmp_path: Path) -> None:
    begin = partial(train_tiny, "--data", "synth:20KB", "--run-dir", tmp_path / "run")
    shutil.copytree(plain, tmp_path / "other")
    refused(begin("--tokenizer", tmp_path / "other", "--vocab-size", 300), "--vocab-size 300", "has 280 tokens")
    refused(begin("--tokenizer", tmp_path), "cannot read the tokenizer", "give a tokenizer.json or the directory")
    result = begin("--tokenizer", tmp_path / "other", "--checkpoint-interval", 2)
    assert result.exit_code == 0, result.output
    assert f"the vocabulary is that of {tmp_path / 'other'}\n" in result.stdout
    assert "vocabulary 280\n" in result.stdout  # not the preset's 300
    assert (tmp_path / "run" / "tokenizer.json").read_bytes() == (plain / "tokenizer.json").read_bytes()
    whole = final(tmp_path / "run")
    shutil.rmtree(tmp_path / "other")  # the run has its own copy
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000004")
    refused(invoke(train.main, "--resume", tmp_path / "run", "--tokenizer", plain), "vocabulary of its own")
    assert invoke(train.main, "--resume", tmp_path / "run").exit_code == 0 and final(tmp_path / "run") == whole


def test_several_texts_resume_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for i in range(3):
        (tmp_path / f"b{i}.txt").write_text(PLAIN[1000 * i : 1000 * (i + 2)])

    def begin(run: str, *more: object) -> Result:
        return train_tiny("--data", "synth:20KB=2", "--data", "b*.txt", "--checkpoint-interval", 2, "--run-dir", run,
                          *more)

    result = begin("run")
    assert result.exit_code == 0, result.output
    assert json.loads(Path("run/config.json").read_text())["data"]["data"] == ["synth:20KB=2", f"{tmp_path}/b*.txt"]
    whole = final(Path("run"))
    shutil.rmtree("run/checkpoints/step-000004")
    monkeypatch.chdir("/")
    assert invoke(train.main, "--resume", tmp_path / "run").exit_code == 0 and final(tmp_path / "run") == whole
    monkeypatch.chdir(tmp_path)
    assert begin("other", "--data", "synth:9KB").exit_code == 0 and final(Path("other")) != whole
    (tmp_path / "b9.txt").write_text("one more")
    config = json.loads(Path("run/config.json").read_text())
    for missing in ({}, {"format": None, "tokenizer": None}):  # the second, as older versions wrote it
        config["data"] = {key: value for key, value in config["data"].items() if key not in missing}
        Path("run/config.json").write_text(json.dumps(config))
        refused(invoke(train.main, "--resume", "run", "--steps", 5),
                "synth:20KB, b*.txt or the validation text is no longer what the run began with")


def test_texts_in_a_file_of_settings(tmp_path: Path) -> None:
    for content, expected in (('data = ["a.txt=2", "b/*.txt"]', ("a.txt=2", "b/*.txt")), ('data = ["a.txt"]', "a.txt"),
                              ('data = "a.txt"', "a.txt")):
        (tmp_path / "c.toml").write_text(content)
        config = resolve(file=tmp_path / "c.toml")
        assert config.data.data == expected and resolve(base=config.to_dict()) == config
    assert resolve(flags={"data": '["a.txt", "b.txt"]'}).data.data == ("a.txt", "b.txt")


def test_a_tokenizer_from_elsewhere_gets_the_marks(tmp_path: Path, plain: Path) -> None:
    content = json.loads((plain / "tokenizer.json").read_text())
    content["added_tokens"] = []
    for mark in ("<|user|>", "<|assistant|>", "<|end_of_text|>"):
        del content["model"]["vocab"][mark]
    content["model"]["vocab"] = {token: i for i, token in enumerate(content["model"]["vocab"])}
    (tmp_path / "t.json").write_text(json.dumps(content))
    found = Tokenizer.of(tmp_path / "t.json")
    assert found.vocab_size == 280 and [found.id("<|user|>"), found.id("<|end_of_text|>")] == [277, 279]
    result = train_tiny("--data", "synth:20KB", "--tokenizer", tmp_path / "t.json", "--run-dir", tmp_path / "run")
    assert result.exit_code == 0 and sampled("--run", tmp_path / "run", "--prompt", "Hi").exit_code == 0
