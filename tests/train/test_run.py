"""A run from Python: begun, continued, opened again; and on a device that is lost."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helios.backends import get_backend
from helios.backends.backend import Backend
from helios.backends.cpu_ref import CpuRef
from helios.errors import DeviceLost, UserError
from helios.train import checkpoint
from helios.train.config import Config, resolve
from helios.train.directory import locked
from helios.train.loop import Loop
from helios.train.progress import Display
from helios.train.records.layout import EVENTS, LIFE, METRICS
from helios.train.records.rows import rows
from helios.train.run import Run
from helios.train.state import TrainState

QUIET = Display(quiet=True)


def tiny(backend: str = "cpu_ref", **settings: Any) -> Config:
    return resolve("tiny", assignments=[f"{k}={v}" for k, v in settings.items()], flags={"backend": backend})


def kinds(path: Path) -> list[str]:
    return [event["kind"] for event in rows(path / EVENTS)]


def final(path: Path) -> bytes:
    last = checkpoint.directories(path)[-1]
    return (last / checkpoint.MODEL).read_bytes() + (last / checkpoint.OPTIMIZER).read_bytes()


def test_begun_continued_and_longer(tmp_path: Path) -> None:
    run = Run.create(tiny(), tmp_path / "run")
    assert not run.path.exists() and not run.finished
    result = run.train(QUIET)
    assert result.finished and result.step == 12 and result.path == run.path and run.finished
    assert str(result).startswith("done: step 12 of 12, loss ") and kinds(run.path)[-1] == "run_complete"
    longer = Run.resume(run.path, resolve(base=run.config.to_dict(), flags={"steps": 14}), tmp_path / "longer")
    assert longer.run_id != run.run_id and longer.train(QUIET).step == 14
    assert [r["step"] for r in rows(tmp_path / "longer" / METRICS)] == list(range(1, 15))
    assert run.finished and len(rows(run.path / METRICS)) == 12  # untouched


def names(path: Path) -> list[str]:
    return [path.name for path in checkpoint.directories(path)]


def test_what_a_kill_left_after_a_checkpoint_is_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.create(tiny(steps=6, checkpoint_interval=2, keep=2), tmp_path / "run")
    run.train(QUIET, until=4)

    def killed(self: Loop) -> None:
        if self.step == 6:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Loop, "_prune", killed)
        Run.resume(run.path).train(QUIET)
    assert names(run.path) == ["step-000002", "step-000004", "step-000006"]
    Run.resume(run.path).train(QUIET)
    assert names(run.path) == ["step-000004", "step-000006"]


def test_a_run_that_has_ended_keeps_its_checkpoints(tmp_path: Path) -> None:
    run = Run.create(tiny(steps=6, checkpoint_interval=2), tmp_path / "run")
    run.train(QUIET)
    fewer = run.config.replaced("train", keep=1)
    assert Run.resume(run.path, fewer).train(QUIET).finished
    assert names(run.path) == ["step-000002", "step-000004", "step-000006"]
    Run.resume(run.path, fewer.replaced("train", steps=7)).train(QUIET)
    assert names(run.path)[-1] == "step-000007" and len(names(run.path)) <= 2  # the best one, too


def test_an_evaluation_has_the_same_texts_whatever_the_batch(tmp_path: Path) -> None:
    losses = []
    for batch, accum, given in ((4, 1, "auto"), (1, 4, 4), (1, 4, "auto")):
        run = Run.create(tiny(batch_size=batch, accum=accum, eval_batch=given, steps=1, lr=1e-9, lr_min=1e-9),
                         tmp_path / f"{batch}-{given}")
        run.train(QUIET)
        losses.append(rows(run.path / METRICS)[-1]["val_loss"])
    assert losses[1] == pytest.approx(losses[0], abs=1e-6) and abs(losses[2] - losses[0]) > 1e-4


def test_one_that_is_being_continued_is_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.create(tiny(), tmp_path / "run")
    run.train(QUIET)
    seen: list[bool] = []
    record = Loop._record
    monkeypatch.setattr(Loop, "_record", lambda self, row: (seen.append(run.finished), record(self, row))[1])
    Run.resume(run.path, resolve(base=run.config.to_dict(), flags={"steps": 13})).train(QUIET)
    assert seen == [False] and run.finished


def test_opened_it_is_new_or_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, path = tiny(checkpoint_interval=4), tmp_path / "run"
    record = Loop._record

    def stopping(self: Loop, row: dict[str, Any]) -> None:
        record(self, row)
        if row["step"] == 5:
            self.signal = 15

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_record", stopping)
        stopped = Run.open(config, path).train(QUIET)
    assert not stopped.finished and "continue with --resume" in stopped.summary
    assert Run.open(config, path).train(QUIET).finished
    whole = Run.create(config, tmp_path / "whole")
    whole.train(QUIET)
    assert final(path) == final(whole.path)
    with pytest.raises(UserError, match=r"holds another run: lr is 0\.01 there and 0\.5 here"):
        Run.open(tiny(checkpoint_interval=4, lr=0.5), path)
    with locked(path, new=False), pytest.raises(UserError, match="in use by another process"):
        Run.open(config, path)


def test_in_a_thread_no_signal_is_heard(tmp_path: Path) -> None:
    """Python hears them in the main thread alone; elsewhere, as in a notebook's, a run trains all the same."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(Run.create(tiny(steps=2), tmp_path / "run").train(QUIET)))
    thread.start()
    thread.join()
    assert results[0].finished


def test_paths_are_of_where_the_run_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "talk.txt").write_text("".join(f"<|user|> {i}? <|assistant|> {7 * i}. <|end_of_text|>\n"
                                               for i in range(900)))
    monkeypatch.chdir(tmp_path)
    run = Run.create(tiny(data="talk.txt", vocab_size=270), "run")
    assert run.config.data.data == str(tmp_path / "talk.txt") and run.path == tmp_path / "run"


# -- a device that is lost --------------------------------------------------------------------------------------------

@pytest.fixture
def losing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Backend]]:
    """Lose the device at these steps, counted over all tries; the result lists the backend of every step."""
    submit, used = TrainState.submit, list[Backend]()

    def lose(*steps: int) -> list[Backend]:
        def submitting(self: TrainState, *args: Any) -> Callable[[], tuple]:
            wait = submit(self, *args)
            used.append(self.backend)
            n = len(used)

            def waiting() -> tuple:
                if n in steps:
                    raise DeviceLost(f"the card was lost in replay {n}")
                return wait()
            return waiting

        monkeypatch.setattr(TrainState, "submit", submitting)
        return used
    return lose


def test_a_lost_device_is_an_event_and_the_run_goes_on(tmp_path: Path, losing: Callable, each_backend: Backend,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny(each_backend.name, checkpoint_interval=4, retries=2)
    whole = Run.create(config, tmp_path / "whole")
    whole.train(QUIET)
    used, run = losing(2, 8), Run.create(config, tmp_path / "lost")  # before the first checkpoint, and after it
    assert run.train(QUIET).finished
    assert len({id(be) for be in used}) == 3 and get_backend(each_backend.name) is used[-1]
    assert final(run.path) == final(whole.path)
    assert [r["loss"] for r in rows(run.path / METRICS)] == [r["loss"] for r in rows(whole.path / METRICS)]
    events = [(e["step"], e["message"]) for e in rows(run.path / EVENTS) if e["kind"] == "device_lost"]
    assert events == [(0, "the card was lost in replay 2"), (4, "the card was lost in replay 8")]
    # The last of these is how a run stands that others hear of by its events alone.
    assert [kind for kind in kinds(run.path) if kind in LIFE] == [
        "device_lost", "run_start", "device_lost", "resumed", "run_complete"]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and said[1] == ("warning: the card was lost in replay 8; going on from the last checkpoint")


def test_without_retries_it_ends_there(tmp_path: Path, losing: Callable) -> None:
    losing(7)
    run = Run.create(tiny(checkpoint_interval=3), tmp_path / "run")
    with pytest.raises(DeviceLost, match="replay 7"):
        run.train(QUIET)
    assert kinds(run.path)[-1] == "device_lost" and rows(run.path / EVENTS)[-1]["step"] == 6
    assert Run.resume(run.path).train(QUIET).finished
    assert kinds(run.path).count("device_lost") == 1  # which a resumed run keeps


def test_lost_before_it_has_a_checkpoint_of_its_own(tmp_path: Path, losing: Callable) -> None:
    """A run that goes on in another directory goes on from where it came."""
    run = Run.create(tiny(), tmp_path / "run")
    run.train(QUIET)
    longer = resolve(base=run.config.to_dict(), flags={"steps": 14, "retries": 1})
    losing(2)
    forked = Run.resume(run.path, longer, tmp_path / "fork")
    assert forked.train(QUIET).step == 14
    assert [r["step"] for r in rows(tmp_path / "fork" / METRICS)] == list(range(1, 15))
    assert kinds(tmp_path / "fork").count("device_lost") == 1


def test_a_signal_before_the_device_was_lost_ends_the_run(tmp_path: Path, losing: Callable) -> None:
    losing(4)
    run = Run.create(tiny(retries=5, checkpoint_interval=2), tmp_path / "run")

    def stop(self: Loop, row: dict) -> None:
        record(self, row)
        if row["step"] == 3:  # while the device computes step 4
            os.kill(os.getpid(), signal.SIGTERM)

    record = Loop._record
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_record", stop)
        result = run.train(QUIET)
    assert not result.finished and result.step == 2 and "interrupted at step 2, as the device was lost" in str(result)
    assert Run.resume(run.path).train(QUIET).finished


def test_no_other_device_takes_the_place_of_a_lost_one(tmp_path: Path, losing: Callable, backend: Backend,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    losing(5)
    backends_ = iter([backend, CpuRef(precision="f32")])
    monkeypatch.setattr("helios.train.run.open_backend", lambda *_: next(backends_))
    with pytest.raises(UserError, match=r"lost in replay 5; it has not come back, and .* is another device"):
        Run.create(tiny(retries=5, checkpoint_interval=2), tmp_path / "run").train(QUIET)


def test_settings_that_do_not_fit_the_device_leave_a_run_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                                   ) -> None:
    run = Run.create(tiny(), tmp_path / "run")
    run.train(QUIET)
    before = (run.path / "config.json").read_bytes()

    def refuse(self: TrainState, *sizes: int) -> None:
        raise UserError("out of memory")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="out of memory"):
        patch.setattr(TrainState, "prepare", refuse)
        Run.resume(run.path, resolve(base=run.config.to_dict(), flags={"batch_size": 64, "steps": 14})).train(QUIET)
    assert (run.path / "config.json").read_bytes() == before
    assert Run.resume(run.path).train(QUIET).finished


def test_a_run_at_its_end_keeps_its_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run.create(tiny(), tmp_path / "run")
    run.train(QUIET)
    before = (run.path / "config.json").read_bytes()
    changed = resolve(base=run.config.to_dict(), flags={"lr": 0.5})
    assert Run.resume(run.path, changed).train(QUIET).finished
    assert "the run is at its end, and this is not used: lr 0.01 → 0.5" in capsys.readouterr().err
    assert (run.path / "config.json").read_bytes() == before and "settings_changed" not in kinds(run.path)


def test_a_run_that_a_rule_stopped_says_how_long_it_was_to_be(tmp_path: Path) -> None:
    stopping = tiny(actions="plateau: stop", plateau_evals=1, plateau_delta=9.0, eval_interval=2)
    run = Run.create(stopping, tmp_path / "run")
    assert "done: step 4 of 12, " in str(run.train(QUIET))
    longer = resolve(base=run.config.to_dict(), flags={"steps": 20})
    assert "done: step 4 of 12, " in str(Run.resume(run.path, longer).train(QUIET))


def test_flags_are_named_as_settings_are() -> None:
    with pytest.raises(UserError, match=r"flags: unknown key 'step'; did you mean steps\?"):
        resolve("tiny", flags={"step": 3})


def test_a_device_that_does_not_come_back(tmp_path: Path, losing: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    losing(5)
    opened: list[str] = []

    def once(name: str, device: str | None, say: object, precision: str, *more: object) -> Backend:
        opened.append(name)
        if len(opened) > 1:
            raise UserError("no Vulkan device")
        return get_backend(name, device, precision)

    monkeypatch.setattr("helios.train.run.open_backend", once)
    with pytest.raises(UserError, match="no Vulkan device"):
        Run.create(tiny(retries=5, checkpoint_interval=2), tmp_path / "run").train(QUIET)
    assert [p.name for p in checkpoint.directories(tmp_path / "run")] == ["step-000002", "step-000004"]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train"]["retries"] == 5
