"""--log tensorboard: event files that say what the run's records say."""

from __future__ import annotations

import builtins
import math
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helios.errors import UserError
from helios.train import checkpoint
from helios.train.config import Config, resolve
from helios.train.progress import Display
from helios.train.records.layout import METRICS, SAMPLES
from helios.train.records.rows import rows
from helios.train.run import Run

event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2", reason="tensorboardX is not installed (an extra)")


class Told(Display):
    """Keeps the warnings."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def tiny(**settings: Any) -> Config:
    return resolve("tiny", assignments=[f"{k}={v}" for k, v in ({"keep": 0} | settings).items()],
                   flags={"backend": "cpu_ref", "log": "tensorboard"})


def events(run: Path) -> Iterator[Any]:
    """All events, by file."""
    for path in sorted((run / "tensorboard").iterdir()):
        raw, at = path.read_bytes(), 0
        while at < len(raw):
            (length,) = struct.unpack_from("<Q", raw, at)
            yield event_pb2.Event.FromString(raw[at + 12:at + 12 + length])
            at += 16 + length


def shown(run: Path) -> tuple[dict[str, dict[int, float]], dict[str, dict[int, str]]]:
    """Scalars and texts by tag and step, as a reader has them that drops what was purged."""
    scalars: dict[str, dict[int, float]] = {}
    texts: dict[str, dict[int, str]] = {}
    for event in events(run):
        if event.HasField("session_log"):
            for by_step in (*scalars.values(), *texts.values()):
                for step in [step for step in by_step if step >= event.step]:
                    del by_step[step]
        for value in event.summary.value:
            if value.HasField("tensor"):
                texts.setdefault(value.tag, {})[event.step] = value.tensor.string_val[0].decode()
            else:
                scalars.setdefault(value.tag, {})[event.step] = value.simple_value
    return {k: v for k, v in scalars.items() if v}, {k: v for k, v in texts.items() if v}


def expected(run: Path) -> dict[str, dict[int, float]]:
    """Numbers of metrics.jsonl by column and step."""
    found: dict[str, dict[int, float]] = {}
    for row in rows(run / METRICS):
        step = row.pop("step")
        flat = {f"{k}/{inner}": x for k, v in row.items() if isinstance(v, dict) for inner, x in v.items()}
        for key, value in (row | flat).items():
            if isinstance(value, int | float):
                found.setdefault(key, {})[step] = pytest.approx(value, rel=1e-6)
    return found


def test_rows_and_samples_also_after_a_resume(tmp_path: Path) -> None:
    config = tiny(checkpoint_interval=4, sample_interval=6, metrics_interval=3)
    run = Run.create(config, tmp_path / "run")
    run.train(Told())
    scalars, texts = shown(run.path)
    assert scalars == expected(run.path) and "per_layer_grad_norms/block0" in scalars and set(scalars["loss"]) == {
        *range(1, 13)}
    assert len(texts) == 5 and all(set(by_step) == {6, 12} for by_step in texts.values())
    sample = rows(run.path / SAMPLES)[0]
    said = texts[f"samples/{sample['prompt']}/text_summary"][6]
    assert [line.removeprefix("    ") for line in said.splitlines()] == sample["text"].splitlines()

    for step in (8, 12):
        shutil.rmtree(run.path / "checkpoints" / f"step-{step:06d}")
    told = Told()
    longer = resolve(base=config.to_dict(), flags={"steps": 10})
    assert Run.resume(run.path, longer).train(told).step == 10 and not told.warnings
    scalars, texts = shown(run.path)
    assert scalars == expected(run.path) and set(scalars["loss"]) == {*range(1, 11)}
    assert all(set(by_step) == {6, 10} for by_step in texts.values())
    assert len(list((run.path / "tensorboard").iterdir())) == 2


def test_a_log_that_begins_later_has_all_rows(tmp_path: Path) -> None:
    config = tiny(checkpoint_interval=6, steps=6)
    run = Run.create(resolve(base=config.to_dict(), flags={"log": "none"}), tmp_path / "run")
    run.train(Told())
    assert not (run.path / "tensorboard").exists()
    longer = resolve(base=config.to_dict(), flags={"log": "tensorboard", "steps": 8})
    Run.resume(run.path, longer).train(Told())
    assert set(shown(run.path)[0]["loss"]) == {*range(1, 9)}
    Run.resume(run.path, resolve(base=longer.to_dict(), flags={"steps": 9}), tmp_path / "other").train(Told())
    assert set(shown(tmp_path / "other")[0]["loss"]) == {*range(1, 10)}


def test_what_keeps_it_from_writing_does_not_end_the_run(tmp_path: Path) -> None:
    from helios.train.records.tensorboard import TensorBoard

    run = Run.create(tiny(steps=3, checkpoint_interval=1), tmp_path / "run")
    run.train(Told())
    shutil.rmtree(run.path / "tensorboard")
    (run.path / "tensorboard").write_text("a file is in the way")
    told = Told()
    assert Run.resume(run.path, resolve(base=run.config.to_dict(), flags={"steps": 5})).train(told).finished
    assert len(told.warnings) == 1 and "the log for TensorBoard ends here" in told.warnings[0]
    assert len(rows(run.path / METRICS)) == 5 and checkpoint.directories(run.path)[-1].name == "step-000005"

    (run.path / "tensorboard").unlink()
    log = TensorBoard(run.path, 6, told.warn)
    assert log.writer and len(told.warnings) == 1
    log.row(METRICS, {"step": 6, "loss": math.nan, "skipped": True, "skip_reason": "spike", "val_loss": None})
    log.writer.close()  # as if the file were gone
    for step in (7, 8):
        log.row(METRICS, {"step": step, "loss": 1.0})
    log.close()
    assert len(told.warnings) == 2
    log = TensorBoard(run.path, 9, told.warn)
    for _ in range(2):
        log.row(SAMPLES, {"step": 9, "text": "without its prompt"})
    assert len(told.warnings) == 3
    scalars = shown(run.path)[0]
    assert math.isnan(scalars["loss"][6]) and scalars["skipped"] == {6: 1.0} and set(scalars["loss"]) == {*range(1, 7)}


def test_without_the_library_a_run_does_not_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **more: Any) -> Any:
        if name.startswith("tensorboardX"):
            raise ModuleNotFoundError(name)
        return real(name, *args, **more)

    monkeypatch.delitem(sys.modules, "helios.train.records.tensorboard", raising=False)
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match="pip install tensorboardX"):
        Run.create(tiny(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tensorboard_reads_it(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator",
                                 reason="TensorBoard is not installed, and only this test needs it")
    run = Run.create(tiny(checkpoint_interval=4), tmp_path / "run")
    run.train(Told())
    for step in (8, 12):
        shutil.rmtree(run.path / "checkpoints" / f"step-{step:06d}")
    Run.resume(run.path, resolve(base=run.config.to_dict(), flags={"steps": 10})).train(Told())
    found = reader.EventAccumulator(str(run.path / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    assert {tag: {e.step: e.value for e in found.Scalars(tag)} for tag in found.Tags()["scalars"]} == expected(run.path)
    assert len(found.Tags()["tensors"]) == 5
