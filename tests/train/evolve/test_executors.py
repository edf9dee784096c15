"""The same experiment, whoever makes its trainings, and whatever dies meanwhile."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psutil
import pytest

import helios
from helios.backends.vulkan.device import choose, profiles
from helios.errors import UserError
from helios.train import checkpoint, synth
from helios.train.config import resolve
from helios.train.device import LAVAPIPE
from helios.train.evolve import worker
from helios.train.evolve.config import asked
from helios.train.evolve.driver import Driver, experiment_of
from helios.train.evolve.executors import Executor, executor
from helios.train.evolve.state import Result
from helios.train.evolve.stops import StopsConfig
from helios.train.evolve.trainings import Job
from helios.train.progress import Display
from helios.train.records import layout
from helios.train.records.journal import JOURNAL
from helios.train.records.layout import EVENTS
from helios.train.records.rows import rows
from helios.train.tokenizer import Tokenizer

DIFFERING = ("tokens_per_sec_mean", "seconds", "memory_mb")  # fields of a result that depend on the machine's load
STEPS = 24  # of a candidate
LONG = 200  # of a training that something is to happen to
QUIET = Display(quiet=True)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for name, seed in (("train.txt", 1), ("val.txt", 2)):
        (folder / name).write_text(synth.corpus(60_000, seed))
    Tokenizer.train((folder / "train.txt").read_text(), 300).save(folder / "tokenizer.json")
    return folder


def flags(texts: Path) -> dict[str, Any]:
    return {"data": str(texts / "train.txt"), "val_data": str(texts / "val.txt"), "backend": "cpu_ref",
            "tokenizer": str(texts / "tokenizer.json")}


def driver(texts: Path, folder: Path, **more: Any) -> Driver:
    """An experiment whose children begin with their parents' weights, of their own width or another."""
    settings = {"per_candidate": STEPS * 64, "population_size": 2, "generations": 3, "replicates": 1, "evaluations": 2,
                "random_control": "false", "validation_replicates": 0, "warm_start": "project"} | more
    found = asked("tiny", None, None, [f"{key}={value}" for key, value in settings.items()], flags(texts),
                  "lr,n_embd=16|32")
    return Driver(folder, experiment_of(found, "same"), QUIET)


def training(texts: Path, name: str = "one", **settings: Any) -> Job:
    given = {"steps": LONG, "eval_interval": LONG, "keep": 0} | settings
    config = resolve("tiny", None, [f"{key}={value}" for key, value in given.items()], flags(texts))
    return Job(name, config, {"experiment": "same"}, 1.0, name, 0, "search", StopsConfig())


def journal(folder: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in DIFFERING}
            for line in rows(folder / JOURNAL, strict=True)]


def outcome(result: Result, folder: Path) -> tuple[dict[str, Any], bytes]:
    """What was measured, and the last weights and moments."""
    last = checkpoint.directories(folder / "runs" / result.run)[-1]
    return ({key: value for key, value in asdict(result).items() if key not in DIFFERING},
            (last / checkpoint.MODEL).read_bytes() + (last / checkpoint.OPTIMIZER).read_bytes())


def made(run: Executor, *jobs: Job) -> list[Result]:
    results = dict(run(jobs))
    return [results[i] for i in range(len(jobs))]


@pytest.fixture(scope="module")
def reference(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The experiment, made in this process; and the long training."""
    folder = tmp_path_factory.mktemp("local")
    assert driver(texts, folder).run(executor("local", folder, None, QUIET))
    return folder


@pytest.fixture(scope="module")
def long(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], bytes]:
    folder = tmp_path_factory.mktemp("long")
    (result,) = made(executor("local", folder, None, QUIET), training(texts))
    return outcome(result, folder)


def at(ready: Callable[[], Any], then: Callable[[Any], Any]) -> threading.Thread:
    """Do something, once, as soon as there is something to do it to."""
    def wait() -> None:
        while not (found := ready()):
            time.sleep(0.005)
        then(found)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def workers(of: int | None = None) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(of).children():
        with suppress(psutil.Error):  # it has just ended
            if worker.__name__ in process.cmdline():
                found.append(process)
    return found


def over(process: psutil.Process) -> bool:
    """Whether a process has ended, though nobody may have asked how."""
    with suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


def without_id(init: dict[str, Any] | None) -> dict[str, Any] | None:
    """What config.json says of a run's first weights, without the random part of their run's name."""
    return init and init | {"run_id": None}


def kinds(path: Path) -> list[str]:
    return [line["kind"] for line in rows(path)]


def test_children_begin_with_projected_weights(reference: Path) -> None:
    """Those of another width, too, and know more than what is new: a guess costs 5.7 nats."""
    births = [line for line in rows(reference / JOURNAL) if line.get("start")]
    assert all(line["start"]["how"] == "project" for line in births)
    widths = {line["id"]: line["settings"].get("n_embd", 32) for line in rows(reference / JOURNAL)
              if line["kind"] == "birth"}
    assert {widths[line["id"]] != widths[line["parent_id"]] for line in births} == {True, False}
    for line in births:
        assert rows(reference / "runs" / f"{line['id']}.s0" / "metrics.jsonl")[0]["loss"] < 5


# -- processes --------------------------------------------------------------------------------------------------------
def test_a_process_that_is_killed_goes_on_from_its_checkpoint(
        texts: Path, long: tuple[dict[str, Any], bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "runs" / "one"
    killer = at(lambda: checkpoint.directories(path)[1:] and workers(), lambda found: found[0].kill())
    (result,) = made(executor("processes", tmp_path, 1, QUIET), training(texts))
    assert not killer.is_alive() and kinds(path / EVENTS).count("resumed") == 1
    assert outcome(result, tmp_path) == long
    assert "warning: one: its process ended by SIGKILL, as where memory runs out; it goes on" in capsys.readouterr().err


@pytest.mark.parametrize(("script", "how"), [
    ("kill -9 $$", "by SIGKILL, as where memory runs out"), ("echo no luck >&2; exit 3", "with no luck")])
def test_one_that_dies_again_and_again_has_failed(
        script: str, how: str, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python").write_text(f"#!/bin/sh\necho >>{tmp_path}/starts\n{script}\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(worker.sys, "executable", str(tmp_path / "python"))
    (result,) = made(executor("processes", tmp_path, 1, QUIET), training(texts, retries=1))
    assert result.status == "failed" and result.why == f"its process ended 4 times, lastly {how}"
    assert len((tmp_path / "starts").read_text().splitlines()) == 4


DRIVER = """
import sys
from pathlib import Path
from helios.train.evolve.driver import Driver
from helios.train.evolve.executors import executor
from helios.train.progress import Display
driver = Driver.resume(Path(sys.argv[1]), Display())
sys.exit(0 if driver.run(executor("processes", driver.folder, 2, Display())) else 130)
"""


def test_in_processes_all_is_the_same_though_the_driver_is_killed_and_stopped(
        texts: Path, reference: Path, tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_text(json.dumps(rows(reference / JOURNAL)[0]) + "\n")
    ends = {}
    for number, results in ((signal.SIGKILL, 1), (signal.SIGTERM, 0)):
        with subprocess.Popen([sys.executable, "-P", "-c", DRIVER, tmp_path], stderr=subprocess.PIPE) as process:
            while not ((found := workers(process.pid)) and kinds(tmp_path / JOURNAL).count("result") >= results):
                assert process.poll() is None, process.stderr and process.stderr.read()
                time.sleep(0.01)
            process.send_signal(number)
            ends[number] = process.wait(), process.stderr and process.stderr.read().decode()
        while not all(map(over, found)):
            time.sleep(0.01)
    said = "stopping after these steps; Ctrl-C ends at once, without checkpoints\n"
    assert ends[signal.SIGKILL][0] == -9 and ends[signal.SIGTERM] == (130, said)
    assert driver(texts, tmp_path).run(executor("processes", tmp_path, 2, QUIET))
    assert journal(tmp_path) == journal(reference)


def test_stopped_a_process_writes_its_checkpoint(texts: Path, tmp_path: Path,
                                                 long: tuple[dict[str, Any], bytes]) -> None:
    job, path = training(texts, checkpoint_interval=0), tmp_path / "runs" / "one"
    at(lambda: len(rows(path / "metrics.jsonl")) > 2, lambda found: os.kill(os.getpid(), signal.SIGINT))
    run = executor("processes", tmp_path, 1, QUIET)
    with pytest.raises(KeyboardInterrupt):
        made(run, job)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler and not workers()
    assert 2 < checkpoint.step_of(checkpoint.directories(path)[-1]) < LONG
    (result,) = made(run, job)
    assert outcome(result, tmp_path) == long


def test_who_starts_while_all_are_stopped_sees_it() -> None:
    workers, process = worker.Workers(print), Mock()
    process.send_signal.side_effect = lambda number: told.append((number, workers.stopping))
    workers.live.add(process)
    told: list[tuple[int, bool]] = []
    workers.stop()
    workers.stop()
    assert told == [(signal.SIGTERM, True), (signal.SIGKILL, True)]


def test_what_is_not_the_candidates_fault_ends_all(texts: Path, tmp_path: Path) -> None:
    job = training(texts)
    gone = job._replace(name="two", config=job.config.replaced("data", data=str(tmp_path / "gone.txt")))
    with pytest.raises(UserError, match=r"cannot read .*gone.txt: No such file or directory; give a UTF-8 text file"):
        made(executor("processes", tmp_path, 2, QUIET), job, gone)
    assert not workers()


def test_simd_widths(texts: Path, tmp_path: Path) -> None:
    widths = [training(texts, width, simd_width=width) for width in ("128", "256")]
    with pytest.raises(UserError, match=r"simd_width 128 is of lavapipe, and .* is another device; leave it out"):
        made(executor("processes", tmp_path, None, QUIET), widths[0])
    try:
        choose([profile for profile, _ in profiles()], LAVAPIPE)
    except UserError as error:
        pytest.skip(f"no lavapipe: {error}")
    jobs = [job._replace(config=job.config.replaced("train", steps=2, backend="vulkan", device=LAVAPIPE))
            for job in widths]
    results = made(executor("processes", tmp_path / "there", 2, QUIET), *jobs)
    names = [layout.read_config(tmp_path / "there" / "runs" / r.run)["device"]["name"] for r in results]
    assert [re.search(r"(\d+) bits", name)[1] for name in names] == ["128", "256"]  # type: ignore[index]


# -- Ray --------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A head node, to which the driver is connected, and two nodes that train, each with a cache of its own."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for i in range(2):
        nodes.add_node(num_cpus=1, resources={"vulkan": 1},
                       env_vars={"HELIOS_CACHE": str(tmp_path_factory.mktemp(f"node{i}"))})
    ray.init(nodes.address, log_to_driver=False, logging_level="ERROR")
    yield nodes
    ray.shutdown()
    nodes.shutdown()


@pytest.fixture
def apart(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The same; its nodes do not see the experiment's directory, as they look for another file there."""
    monkeypatch.setattr("helios.train.evolve.executors.ray.MARK", "another")
    return cluster


def test_on_ray_all_is_the_same(texts: Path, reference: Path, tmp_path: Path, apart: Any,
                                monkeypatch: pytest.MonkeyPatch) -> None:
    from helios.train.evolve import shipping

    real, hidden = shipping.needed, texts.with_name("hidden")
    monkeypatch.setattr(shipping, "needed", lambda config: (real(config), texts.rename(hidden))[0])
    try:  # nodes have to do without the driver's files
        begun = driver(texts, tmp_path)
        assert begun.run(executor("ray", tmp_path, None, QUIET))
    finally:
        hidden.rename(texts)
    assert journal(tmp_path) == journal(reference)
    for run in (tmp_path / "runs").iterdir():
        there, here = (json.loads((folder / "runs" / run.name / "config.json").read_text().replace(str(folder), "."))
                       for folder in (reference, tmp_path))
        assert {k: there[k] for k in ("data", "evolve", "config_hash", "train")} == {
            k: here[k] for k in ("data", "evolve", "config_hash", "train")}
        assert without_id(there.get("init")) == without_id(here.get("init"))
        mine, theirs = (checkpoint.load(checkpoint.directories(folder / "runs" / run.name)[-1]).state["files"]
                        for folder in (reference, tmp_path))
        assert mine == theirs
    assert kinds(run / EVENTS)[-1] == "run_complete"
    caches = [Path(node._ray_params.env_vars["HELIOS_CACHE"]) / "parents" / "same" for node in apart.worker_nodes]
    sent = [len([*cache.iterdir()]) for cache in caches if cache.exists()]
    assert sent and max(sent) == 1  # of the last generation, whose children have one parent; those before are gone


def test_a_node_that_sees_the_directory_trains_there(texts: Path, cluster: Any, tmp_path: Path) -> None:
    job = training(texts, steps=2)
    (result,) = made(executor("ray", tmp_path, None, QUIET), job)
    assert result.steps == 2 and (tmp_path / "runs" / "one" / "lock").exists()  # which is never sent


def test_a_node_of_another_version_is_refused(texts: Path, apart: Any, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helios, "__version__", "9.9")
    with pytest.raises(UserError, match=r"node .* has helios .*, and the experiment runs with 9.9; install the same"):
        made(executor("ray", tmp_path, None, QUIET), training(texts))


def test_stopped_a_node_sends_its_checkpoint(texts: Path, apart: Any, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "one"
    at(lambda: checkpoint.directories(path), lambda found: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt):
        made(executor("ray", tmp_path, None, QUIET), training(texts, steps=5000))
    assert sorted(kinds(path / EVENTS)[-2:]) == ["checkpoint", "interrupted"]


def test_the_training_of_a_lost_node_goes_on_elsewhere(
        texts: Path, apart: Any, long: tuple[dict[str, Any], bytes], tmp_path: Path,
        capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "runs" / "one"

    def trains() -> tuple[Any, psutil.Process] | None:
        caches = {node._ray_params.env_vars["HELIOS_CACHE"]: node for node in apart.worker_nodes}
        for process in psutil.process_iter() if checkpoint.directories(path) else ():
            with suppress(psutil.Error):
                if worker.__name__ in process.cmdline() and (cache := process.environ()["HELIOS_CACHE"]) in caches:
                    process.suspend()  # so that it does not come to its end before its node
                    return caches[cache], process
        return None

    def lose(found: tuple[Any, psutil.Process]) -> None:
        apart.remove_node(found[0], allow_graceful=False)
        found[1].kill()

    at(trains, lose)
    (result,) = made(executor("ray", tmp_path, None, QUIET), training(texts))
    assert outcome(result, tmp_path) == long and kinds(path / EVENTS).count("resumed") == 1
    assert "warning: one: NodeDiedError: Task failed because the node" in capsys.readouterr().err


def test_without_ray_or_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    with pytest.raises(UserError, match=r"no Ray cluster answers at ray://127.0.0.1:1 \(.*refused\); give the address"):
        executor("ray://127.0.0.1:1", tmp_path, None, QUIET)
    with pytest.raises(UserError, match=r"no Ray cluster answers at ray://\[::1\]:10001 \(\[Errno"):
        executor("ray://[::1]", tmp_path, None, QUIET)
    monkeypatch.delitem(sys.modules, "helios.train.evolve.executors.ray")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"--executor ray needs ray; install it with: pip install 'helios-gpt\[ray\]'"):
        executor("ray", tmp_path, None, QUIET)
