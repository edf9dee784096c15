"""helios-train, helios-sample and helios-info as a user meets them: exit codes, one-line errors, what is printed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import Result

from helios.backends.backend import Backend
from helios.cli import info, sample, train
from helios.errors import DeviceLost
from helios.train import checkpoint, directory
from helios.train.loop import Loop
from helios.train.progress import Display
from helios.train.records.layout import LOGS
from helios.train.state import TrainState

from ..commands import invoke as run
from ..commands import refused


def helios_train(*args: str | Path) -> Result:
    return run(train.main, "--preset", "tiny", "--backend", "cpu_ref", *args)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 12 steps with checkpoints at 6 and 12."""
    path = tmp_path_factory.mktemp("done") / "run"
    assert helios_train("--run-dir", path).exit_code == 0
    return path


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    return shutil.copytree(done, tmp_path / "copy")


def test_a_run_leaves_what_the_interface_says(done: Path) -> None:
    assert {p.name for p in done.iterdir()} == {
        "config.json", "metrics.jsonl", "events.jsonl", "samples.jsonl", "tokenizer.json", "checkpoints", "lock"}
    config = json.loads((done / "config.json").read_text())
    assert {"model", "train", "data", "monitor", "device", "parameters", "run_id", "config_hash", "versions", "chat",
            "created", "host", "tuned"} == config.keys()
    assert config["device"].keys() == {"backend", "name", "driver"} and config["parameters"] == 44_608
    assert len((done / "metrics.jsonl").read_text().splitlines()) == 12
    kinds = [json.loads(line)["kind"] for line in (done / "events.jsonl").read_text().splitlines()]
    assert kinds == ["run_start", "checkpoint", "checkpoint", "run_complete"]
    state = json.loads((done / "checkpoints" / "step-000006" / "state.json").read_text())
    assert {"step", "seed", "position", "best_val", "config_hash", "model", "tokenizer", "files"} <= state.keys()


BAD: dict[str, tuple[list[str], str]] = {
    "missing data": (["--data", "{tmp}/no.txt"], "no.txt"),
    "empty data": (["--data", "{tmp}/empty.txt"], "is empty"),
    "a directory": (["--data", "{tmp}"], "cannot read"),
    "not UTF-8": (["--data", "{tmp}/latin1.txt"], "is not UTF-8"),
    "missing validation data": (["--data", "{tmp}/some.txt", "--val-data", "{tmp}/no.txt"], "no.txt"),
    "shorter than a block": (["--data", "{tmp}/some.txt", "--val-data", "{tmp}/short.txt", "--vocab-size", "270"],
                             "validation text has"),
    "block longer than the text": (["--data", "{tmp}/some.txt", "--block", "9999", "--vocab-size", "270"],
                                   "smaller block size"),
    "vocabulary too large": (["--data", "{tmp}/some.txt", "--vocab-size", "5000"], "supports only"),
    "vocabulary too small": (["--vocab-size", "100"], "give one from 259"),
    "heads": (["--heads", "5"], "multiple of n_head 5"),
    "activation": (["--activation", "swigloo"], "did you mean swiglu?"),
    "preset": (["--preset", "historic"], "did you mean historic-6l?"),
    "key": (["--set", "batchsize=2"], "did you mean batch_size?"),
    "type": (["--steps", "ten"], "--steps: expected a whole number, got 'ten'"),
    "range": (["--dropout", "1.5"], "--dropout: expected at least 0 and less than 1"),
    "backend": (["--backend", "cuda"], "one of auto, vulkan, cpu_ref"),
    "precision": (["--precision", "f16"], "--precision: expected one of f32"),
    "device of cpu_ref": (["--device", "0"], "cpu_ref has none"),
    "missing config": (["--config", "{tmp}/no.toml"], "no.toml"),
    "config with an unknown key": (["--config", "{tmp}/bad.toml"], "unknown key 'layer'; did you mean layers?"),
    "a morph of nothing": (["--morph", "project"], "what may differ from --init-from; give that, too"),
    "challengers without windows": (["--set", "challengers=9"], "nothing opens one; give --search continuous"),
    "no such run": (["--resume", "{tmp}/no"], "is missing"),
    "no run": (["--resume", "{tmp}"], "no run directory"),
    "directory of others": (["--run-dir", "{tmp}"], "not empty"),
    "a file for a directory": (["--run-dir", "{tmp}/some.txt"], "is a file"),
    "memory": (["--dim", "65536", "--layers", "96", "--heads", "64"], "MiB left"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "latin1.txt").write_bytes("né".encode("latin-1") * 500)
    (tmp_path / "short.txt").write_text("Hi.")
    (tmp_path / "some.txt").write_text("".join(
        f"<|user|> What is {i}? <|assistant|> A number. <|end_of_text|>\n" for i in range(99)))
    (tmp_path / "bad.toml").write_text("layer = 3")
    args, message = BAD[name]
    fresh = [] if "--run-dir" in args else ["--run-dir", str(tmp_path / "run")]
    refused(helios_train(*(a.format(tmp=tmp_path) for a in args), *fresh), message)
    assert not (tmp_path / "run").exists()


def test_a_run_directory_in_use(copy: Path) -> None:
    with directory.locked(copy, new=False):
        refused(helios_train("--run-dir", copy), "in use by another process")
        refused(run(train.main, "--resume", copy), "in use by another process")
    refused(helios_train("--run-dir", copy), "continue it with --resume")


def test_a_checkpoint_of_another_model(copy: Path) -> None:
    refused(run(train.main, "--resume", copy, "--layers", "3"), "n_layer is 2 there and 3 here")
    refused(run(train.main, "--resume", copy, "--preset", "quickstart"), "n_embd is 32 there and 128 here")


def test_truncated_and_foreign_checkpoints(copy: Path) -> None:
    newest, older = copy / "checkpoints" / "step-000012", copy / "checkpoints" / "step-000006"
    os.truncate(newest / "model.safetensors", 1000)
    refused(run(train.main, "--resume", newest), "model.safetensors is truncated")
    refused(run(sample.main, "--run", newest, "--prompt", "x"), "model.safetensors is truncated")
    result = run(train.main, "--resume", copy)  # from the one before, and says so
    assert result.exit_code == 0 and "step-000012 is damaged" in result.output
    (older / "state.json").write_text('{"format": "other"}')
    os.truncate(newest / "state.json", 100)
    refused(run(train.main, "--resume", copy), "state.json is truncated")
    refused(run(train.main, "--resume", older), "foreign")


def test_an_older_checkpoint_needs_a_directory_of_its_own(copy: Path, tmp_path: Path) -> None:
    older = copy / "checkpoints" / "step-000006"
    refused(run(train.main, "--resume", older), "has later checkpoints (step-000012)")
    result = run(train.main, "--resume", older, "--run-dir", tmp_path / "fork", "--steps", "8")
    assert result.exit_code == 0, result.output
    steps = [json.loads(line)["step"] for line in (tmp_path / "fork" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 9))
    assert json.loads((tmp_path / "fork" / "config.json").read_text())["run_id"] != json.loads(
        (copy / "config.json").read_text())["run_id"]


def test_text_that_changed_under_a_run(tmp_path: Path) -> None:
    text, path = tmp_path / "a.txt", tmp_path / "run"
    lines = [f"<|user|> What is {i}? <|assistant|> A number. <|end_of_text|>\n" for i in range(300)]
    text.write_text("".join(lines))
    assert helios_train("--data", text, "--run-dir", path, "--vocab-size", "280").exit_code == 0
    text.write_text("".join(lines[:200]))
    refused(run(train.main, "--resume", path, "--steps", "14"), "no longer what the run began with")
    (tmp_path / "b.txt").write_text("".join(lines[:200]))
    result = run(train.main, "--resume", path, "--steps", "14", "--data", tmp_path / "b.txt")
    assert result.exit_code == 0, result.output
    assert "settings_changed" in (path / "events.jsonl").read_text()


def test_a_full_disk_in_a_checkpoint(tmp_path: Path, done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = checkpoint._write

    def write(path: Path, raw: bytes) -> None:
        if "000012" in str(path) and path.name == checkpoint.OPTIMIZER:
            path.write_bytes(raw[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, raw)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write", write)
        refused(helios_train("--run-dir", tmp_path / "run"), "No space left on device", stdout=None)
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["step-000006"]
    assert run(train.main, "--resume", tmp_path / "run").exit_code == 0
    for name in (checkpoint.MODEL, checkpoint.OPTIMIZER):
        last = Path("checkpoints", "step-000012", name)
        assert (tmp_path / "run" / last).read_bytes() == (done / last).read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted(tmp_path: Path, done: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    real = Display.row

    def row(self: Display, values: Any) -> None:
        real(self, values)
        if values["step"] == 3:  # while the device computes step 4
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(Display, "row", row)
        result = helios_train("--run-dir", tmp_path / "run")
    assert result.exit_code == 130 and "interrupted: step 4 of 12" in result.output
    assert os.listdir(tmp_path / "run" / "checkpoints") == ["step-000004"]
    assert number.name in (tmp_path / "run" / "events.jsonl").read_text()
    assert run(train.main, "--resume", tmp_path / "run").exit_code == 0
    last = Path("checkpoints", "step-000012", checkpoint.MODEL)
    assert (tmp_path / "run" / last).read_bytes() == (done / last).read_bytes()


def test_interrupted_before_the_first_step(tmp_path: Path, done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and with what to do next: new, resumed, and resumed elsewhere."""
    def begin(self: Loop) -> bool:
        os.kill(os.getpid(), signal.SIGINT)
        return real(self)

    real, new = Loop.run, tmp_path / "new"
    old = shutil.copytree(done, tmp_path / "old", ignore=shutil.ignore_patterns("step-000012"))
    again = {new: f"no step was made; start again with --run-dir {new}", old: f"continue with --resume {old}",
             tmp_path / "other": "start again with another --run-dir, or remove this one first"}
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "run", begin)
        for path, words in again.items():
            given = ("--preset", "tiny", "--backend", "cpu_ref") if path == new else ("--resume", old)
            result = run(train.main, *given, "--run-dir", path, "--quiet")
            assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (130, "", 1)
            assert result.stderr.startswith("interrupted at once, ") and result.stderr.endswith(f"{words}\n")
    assert helios_train("--run-dir", new, "--quiet").exit_code == 0
    assert run(train.main, "--resume", old, "--quiet").exit_code == 0


def test_a_signal_that_is_ignored_stays_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As nohup does with SIGHUP."""
    real, heard = Display.row, []

    def row(self: Display, values: Any) -> None:
        real(self, values)
        os.kill(os.getpid(), signal.SIGHUP)
        heard.append(values["step"])

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        monkeypatch.setattr(Display, "row", row)
        assert helios_train("--run-dir", tmp_path / "run").exit_code == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert heard == list(range(1, 13))


def test_a_lost_device_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the user's mistake, and no bug: exit 1 without a traceback."""
    def lost(self: TrainState, *args: Any) -> Any:
        raise DeviceLost("the card was lost")

    monkeypatch.setattr(TrainState, "submit", lost)
    result = helios_train("--run-dir", tmp_path / "run", "--quiet", "--retries", "1")
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert result.stderr.splitlines() == ["warning: the card was lost; going on from the last checkpoint",
                                          "error: the card was lost"]


def test_what_is_printed(tmp_path: Path) -> None:
    loud = helios_train("--run-dir", tmp_path / "a")
    assert "44,608 parameters" in loud.stdout and "step 12/12  loss" in loud.stdout
    assert loud.stdout.count("<|assistant|>") >= 5
    quiet = helios_train("--run-dir", tmp_path / "b", "--quiet")
    assert quiet.exit_code == 0 and quiet.stderr == ""
    assert quiet.stdout.startswith("done: step 12 of 12, loss ") and quiet.stdout.count("\n") == 1


def piped(path: Path, reader: str, **env: str) -> subprocess.CompletedProcess[str]:
    """helios-train in a shell, its output going to `reader`; stdout is what that printed and the exit code."""
    train = '"$0" -m helios.cli.train --preset tiny --backend cpu_ref --run-dir "$1"'
    script = f'{train} {reader}; echo "${{PIPESTATUS[0]}}"'
    return subprocess.run(["bash", "-c", script, sys.executable, str(path)], env=os.environ | env, capture_output=True,
                          text=True, encoding="latin-1", timeout=120)


@pytest.mark.parametrize("reader", ["| head -1", "| true", "> /dev/full", ">&-"])
def test_output_that_cannot_be_written(tmp_path: Path, reader: str) -> None:
    result = piped(tmp_path / "run", reader)
    assert result.stdout.splitlines()[-1] == "0" and result.stderr == ""
    assert (tmp_path / "run" / "checkpoints" / "step-000012").exists()
    assert '"run_complete"' in (tmp_path / "run" / "events.jsonl").read_text()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_output_in_a_small_encoding(tmp_path: Path, encoding: str) -> None:
    result = piped(tmp_path / "run", "| cat", PYTHONIOENCODING=encoding)
    assert result.stdout.splitlines()[-1] == "0" and result.stderr == ""
    assert "val ?" in result.stdout  # the dash of a value not known yet
    result = subprocess.run([sys.executable, "-m", "helios.cli.train", "--help"], capture_output=True, text=True,
                            env=os.environ | {"PYTHONIOENCODING": encoding}, encoding="latin-1")
    assert result.returncode == 0 and "--activation ACTIVATION[|" in result.stdout


def test_a_run_killed_before_its_first_checkpoint(tmp_path: Path, done: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(done, path, ignore=shutil.ignore_patterns("step-*"))
    again = "start again with another --run-dir, or remove this one first"
    for gone in ("put its checkpoints/ back, or ", ""):  # they were moved away, or never there
        words = f"a run without a checkpoint to continue it from; {gone}{again}"
        before = (path / "metrics.jsonl").read_bytes()
        refused(run(train.main, "--resume", path), words)
        refused(helios_train("--run-dir", path), words)
        assert (path / "metrics.jsonl").read_bytes() == before
        (path / "events.jsonl").write_text((path / "events.jsonl").read_text().splitlines(keepends=True)[0])
    for name in LOGS:
        os.truncate(path / name, 0)
    assert helios_train("--run-dir", path, "--vocab-size", "290").exit_code == 0  # another vocabulary, too
    kinds = [json.loads(line)["kind"] for line in (path / "events.jsonl").read_text().splitlines()]
    assert kinds == ["run_start", "checkpoint", "checkpoint", "run_complete"]
    assert run(train.main, "--resume", path, "--steps", "14").exit_code == 0


def test_the_seed_of_a_run_cannot_change(copy: Path) -> None:
    refused(run(train.main, "--resume", copy, "--seed", "5", "--steps", "14"), "--seed 5: the run has seed 0")


@pytest.mark.parametrize(("command", "args", "words"), [
    (train.main, ["--batchsize", "3"], "--batch"), (train.main, ["--steps"], "requires an argument"),
    (train.main, ["x"], "unexpected extra argument"), (sample.main, ["--run", "x"], "Missing option '--prompt'"),
    (sample.main, ["--run", "x", "--prompt", "y", "--temperature", "-1"], "at least 0"),
    (info.main, ["--jsn"], "--json"),
])
def test_bad_usage(command: click.Command, args: list[str], words: str) -> None:
    refused(run(command, *args), words)


def test_default_run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert helios_train("--steps", "1").exit_code == 0
    (path,) = (tmp_path / "runs").iterdir()
    assert path.name == json.loads((path / "config.json").read_text())["run_id"]


def test_a_run_cannot_go_back(copy: Path) -> None:
    refused(run(train.main, "--resume", copy, "--steps", "3"), "--steps 3: the run is at step 12 already")


def test_a_finished_run_resumed_has_nothing_to_do(copy: Path) -> None:
    before = (copy / "metrics.jsonl").read_bytes()
    result = run(train.main, "--resume", copy)
    assert result.exit_code == 0 and "done: step 12 of 12" in result.stdout
    assert (copy / "metrics.jsonl").read_bytes() == before


def test_sample(done: Path) -> None:
    args = ("--run", done, "--backend", "cpu_ref", "--tokens", "8", "--prompt")
    first = run(sample.main, *args, "Who are you?")
    assert first.exit_code == 0 and first.stdout.startswith("<|user|> Who are you? <|assistant|> ")
    assert run(sample.main, *args, "Who are you?").stdout == first.stdout
    assert run(sample.main, *args, "Who are you?", "--seed", "1").stdout != first.stdout
    assert run(sample.main, *args, "Who are you?", "--temperature", "0", "--top-k", "0").exit_code == 0
    assert run(sample.main, *args, "x" * 999).exit_code == 0  # longer than a block
    assert run(sample.main, "--run", done / "checkpoints" / "step-000006", *args[2:], "?").exit_code == 0
    refused(run(sample.main, "--run", "nowhere", "--prompt", "x"), "is missing")


def test_info() -> None:
    report = json.loads(run(info.main, "--json").stdout)
    assert report["helios"] and report["cpu_ref"]["total"] > 0 and "devices" in report
    text = run(info.main)
    assert text.exit_code == 0 and "cpu_ref: " in text.stdout and "vulkan: " in text.stdout
    for device in report["devices"]:
        assert device["name"] in text.stdout


def subprocess_without_devices(module: str, *args: str | Path) -> subprocess.CompletedProcess[str]:
    nowhere = {"VK_DRIVER_FILES": "/nowhere.json", "VK_ICD_FILENAMES": "/nowhere.json"}
    return subprocess.run([sys.executable, "-m", module, *map(str, args)], env=os.environ | nowhere,
                          capture_output=True, text=True, timeout=120)


def test_no_vulkan_device(tmp_path: Path) -> None:
    result = subprocess_without_devices("helios.cli.train", "--preset", "tiny", "--backend", "vulkan",
                                        "--run-dir", tmp_path / "a")
    assert result.returncode == 2 and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    result = subprocess_without_devices("helios.cli.train", "--preset", "tiny", "--run-dir", tmp_path / "b",
                                        "--steps", "2")
    assert result.returncode == 0 and "done: step 2 of 2" in result.stdout
    assert result.stderr.startswith("warning: no Vulkan device") and result.stderr.count("\n") == 1
    result = subprocess_without_devices("helios.cli.train", "--preset", "tiny", "--run-dir", tmp_path / "c",
                                        "--steps", "2", "--quiet")
    assert result.returncode == 0 and result.stdout.startswith("done: ")
    assert result.stderr.startswith("warning: no Vulkan device")
    assert "--backend cpu_ref" in result.stderr
    result = subprocess_without_devices("helios.cli.info")
    assert result.returncode == 0 and "Traceback" not in result.stderr and "--backend cpu_ref" in result.stdout
    result = subprocess_without_devices("helios.cli.bench", "--quick")
    assert result.returncode == 2 and "--backend cpu_ref" in result.stderr


def test_train_and_sample_on_the_device(tmp_path: Path, backend: Backend) -> None:
    """Through the command line: the backend that the tests are run for."""
    where = ["--backend", backend.name]
    if device := os.environ.get("HELIOS_TEST_BACKEND", "").partition(":")[2]:
        where += ["--device", device]
    result = run(train.main, "--preset", "tiny", *where, "--accum", "2", "--run-dir", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "run" / "config.json").read_text())["device"]["name"] == backend.device_name
    result = run(sample.main, "--run", tmp_path / "run", *where, "--prompt", "Hello", "--tokens", "4")
    assert result.exit_code == 0, result.output
