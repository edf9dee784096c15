"""helios-data from the outside: output, exit codes, one line for an error."""

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import click
import pytest

from helios.cli.common import HeliosCommand
from helios.cli.data import main
from helios.errors import UserError
from helios.train import synth
from helios.train.tokenizer import Tokenizer

from ..commands import invoke, refused

run = partial(invoke, main)


def test_synth_to_stdout_and_to_a_file(tmp_path: Path) -> None:
    text = synth.corpus(20_000, 3).encode()
    assert run("synth", "--size", "20KB", "--seed", 3).stdout_bytes == text
    result = run("synth", "--size", "20KB", "--seed", 3, "--out", tmp_path / "a.txt")
    assert (result.exit_code, result.stdout) == (0, "") and (tmp_path / "a.txt").read_bytes() == text
    assert result.stderr == f"{tmp_path / 'a.txt'}: {len(text):,} bytes\n"


def test_tokenize(tmp_path: Path) -> None:
    result = run("tokenize", "--data", "synth:60KB", "--vocab-size", 500, "--out", tmp_path / "t.json")
    assert result.exit_code == 0, result.output
    tokenizer, text = Tokenizer.load(tmp_path / "t.json"), synth.corpus(60_000)
    count = len(tokenizer.encode(text))
    assert "500 tokens" in result.stdout
    assert f"{count:,} tokens, {len(text.encode()) / count:.2f} bytes per token" in result.stdout


def test_stats(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("<|user|> é? <|assistant|> b. <|user|> c? <|assistant|> d. <|end_of_text|>\n" * 3)
    result = run("stats", tmp_path / "a.txt")
    rows = {name.strip(): int(count.replace(",", "")) for name, _, count in
            (line.rpartition(" ") for line in result.stdout.splitlines())}
    assert result.exit_code == 0
    assert rows["documents"] == 3 and rows["distinct documents"] == 1
    assert rows["questions"] == rows["answers"] == 6
    assert rows["bytes"] == (tmp_path / "a.txt").stat().st_size == rows["characters"] + 3


def test_convert(tmp_path: Path) -> None:
    talk = {"conversations": [{"from": "human", "value": "é?"}, {"from": "gpt", "value": "b."}]}
    (tmp_path / "a.json").write_text(json.dumps([talk] * 3))
    expected = "<|user|> é? <|assistant|> b. <|end_of_text|>\n" * 3
    assert run("convert", tmp_path / "a.json").stdout_bytes == expected.encode()
    result = run("convert", tmp_path / "a.json", "--out", tmp_path / "a.txt")
    assert result.exit_code == 0 and (tmp_path / "a.txt").read_text() == expected
    assert run("convert", tmp_path / "a.json", "--format", "text").stdout == json.dumps([talk] * 3)
    (tmp_path / "bad.jsonl").write_text(json.dumps(talk) + "\nno\n")
    refused(run("convert", tmp_path / "bad.jsonl", "--out", tmp_path / "b.txt"), "bad.jsonl, line 2: no JSON")
    assert not (tmp_path / "b.txt").exists()


def test_too_much_text_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synth, "_conversations", lambda seed: pytest.fail("work was begun"))
    refused(run("synth", "--size", "999999GB", "--out", tmp_path / "a.txt"), "'999999GB' is too large")
    refused(run("synth", "--size", "9" * 400 + "GB"), "is too large")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**6, 0, 10**6))
    refused(run("synth", "--size", "2MB", "--out", tmp_path / "a.txt"), "1,000,000 bytes are free", "ask for less")
    assert list(tmp_path.iterdir()) == []


def test_user_errors_are_one_line(tmp_path: Path) -> None:
    refused(run("synth", "--size", "2 lots"), "'2 lots'", "2MB")
    refused(run("synth", "--size", "1KB", "--out", tmp_path / "no" / "a.txt"), "cannot write")
    refused(run("stats", tmp_path / "no.txt"), "no.txt", "No such file")
    refused(run("stats", tmp_path), "directory")
    refused(run("tokenize", "--data", "synth:9KB", "--vocab-size", 9000, "--out", tmp_path / "t.json"), "supports only")
    refused(run("tokenize", "--data", "synth:9KB", "--vocab-size", 10, "--out", tmp_path / "t.json"), "259")
    missing = tmp_path / "no" / "t.json"
    refused(run("tokenize", "--data", "synth:9KB", "--vocab-size", 300, "--out", missing), "cannot write")
    assert list(tmp_path.iterdir()) == []


def test_bad_usage_is_one_line() -> None:
    refused(run(), "Missing command")
    refused(run("stat"), "'stat'", "stats")
    refused(run("tokenize"), "Missing option '--data'; see main tokenize --help")
    refused(run("synth", "--seed", "-1"), "--seed: expected at least 0, got '-1'")
    refused(run("synth", "--sizes", "1KB"), "No such option '--sizes'", "--size")
    refused(run("synth", "--size"), "requires an argument")
    refused(run("stats", "a", "b"), "unexpected extra argument")


@pytest.mark.parametrize("args", [["--help"], ["synth", "--help"]])
def test_help(args: list[str]) -> None:
    result = run(*args)
    assert result.exit_code == 0 and result.stdout.startswith("Usage: main") and result.stderr == ""


def test_as_a_module() -> None:
    result = subprocess.run([sys.executable, "-m", "helios.cli.data", "--help"], capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.startswith("Usage: ")


@pytest.mark.parametrize("error, code", [(UserError("a\nb"), 2), (KeyboardInterrupt(), 130), (None, 0)])
def test_exit_codes(error: BaseException | None, code: int) -> None:
    @click.command(cls=HeliosCommand)
    def command() -> None:
        if error:
            raise error

    result = invoke(command)
    assert result.exit_code == code
    assert result.stderr == {2: "error: a b\n", 130: "interrupted\n", 0: ""}[code]


def test_a_bug_keeps_its_traceback() -> None:
    @click.command(cls=HeliosCommand)
    def command() -> None:
        raise ZeroDivisionError

    result = invoke(command)
    assert result.exit_code == 1 and isinstance(result.exception, ZeroDivisionError)
