"""A run: its directory, its settings and where it starts from.

    result = Run.create(resolve("quickstart"), "runs/first").train()
"""

from __future__ import annotations

import gc
import platform
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import helios
from helios import backends
from helios.backends.backend import Backend
from helios.errors import DeviceLost, UserError
from helios.host import cache_dir
from helios.train import checkpoint, data, texts
from helios.train.config import Config, resolve
from helios.train.device import check_memory, device_kind, open_backend
from helios.train.loop import Loop
from helios.train.progress import Display
from helios.train.records import directory
from helios.train.records.directory import EVENTS, METRICS
from helios.train.records.records import Records
from helios.train.records.rows import rows
from helios.train.resume import Resumed, Start, settings_of
from helios.train.search.budget import check_cost, cost_in_words, models
from helios.train.search.files import FOLDER
from helios.train.search.search import Search
from helios.train.stage import Plan


class Result(NamedTuple):
    """How a run ended."""

    finished: bool  # False: a signal ended it, and it can be resumed
    path: Path
    step: int
    summary: str  # in one line

    def __str__(self) -> str:
        return self.summary


@dataclass(frozen=True)
class Run:
    """A run in the directory `path`; `create`, `resume` and `open` make one. Nothing is written before `train`.

    source: the run or checkpoint directory that it goes on from; None for a new run.
    """

    path: Path
    config: Config
    run_id: str
    source: Path | None = None

    @classmethod
    def create(cls, config: Config, path: str | Path | None = None) -> Run:
        """Return a new run in the new or empty directory `path`; None: in runs/<run id>.
        Raises UserError where a search may cost more than max_cost."""
        config = _checked(config)
        run_id = directory.run_id(texts.sources(config.data.data)[0].name)
        return cls(Path(path or Path("runs") / run_id).absolute(), config, run_id)

    @classmethod
    def resume(cls, source: str | Path, config: Config | None = None, path: str | Path | None = None) -> Run:
        """Return a run that goes on from `source`, the directory of a run or of one of its checkpoints.

        config: settings to use instead of its own. path: a new or empty directory, in which a run of its own goes on
        with a copy of the records; None: it goes on where it is. Raises UserError where `source` holds no run.
        """
        source = Path(source).absolute()
        origin = directory.run_of(source)
        config = _checked(config or resolve(base=settings_of(source)))
        if path is None or Path(path).resolve() == origin.resolve():
            return cls(origin, config, directory.read_config(origin)["run_id"], source)
        return cls(Path(path).absolute(), config, directory.run_id(texts.sources(config.data.data)[0].name), source)

    @classmethod
    def open(cls, config: Config, path: str | Path, what: str = "run") -> Run:
        """Return the run with these settings in the directory `path`, be it new, begun or finished.
        Raises UserError where a run with other settings is there; the message calls it `what`."""
        path = Path(path).absolute()
        if not directory.finished(path) and not checkpoint.directories(path):
            return cls.create(config, path)
        with directory.locked(path, new=False):
            run, theirs = cls.resume(path, config), settings_of(path)
        for name, ours in reversed(run.config.to_dict().items()):  # the search's first: others follow from them
            for key, here in ours.items():
                if (there := theirs.get(name, {}).get(key)) != here:
                    raise UserError(f"{path} holds another {what}: {key} is {there} there and {here} here; give the "
                                    f"same command again, or another --run-dir")
        return run

    @property
    def finished(self) -> bool:
        """Return whether the run has come to its end."""
        return directory.finished(self.path)

    def train(self, display: Display | None = None) -> Result:
        """Train to the end or until a signal comes; the directory is locked meanwhile.

        display: where progress is shown; by default on the console. After a lost device the run goes on from its last
        checkpoint, at most `retries` times; then DeviceLost is raised. Raises UserError for what a user can put right.
        """
        display, run, lost = display or Display(), self, ""
        origin = self.source and directory.run_of(self.source)
        with directory.locked(self.path, new=self.path != origin):
            for left in reversed(range(self.config.train.retries + 1)):
                try:
                    return run._train(display, lost)
                except DeviceLost as error:
                    if not left:
                        raise
                    display.warn(f"warning: {error}; going on from the last checkpoint")
                    lost = str(error)
                backends.forget()
                gc.collect()  # frees what was on the lost device
                run = replace(self, source=self.path if checkpoint.directories(self.path) else self.source)
        raise AssertionError("the last try returns or raises")

    # -- in the locked directory --------------------------------------------------------------------------------------
    def _train(self, display: Display, lost: str) -> Result:
        """Make one attempt to train. lost: the message of the device loss that ended the one before; "": none did."""
        config, path, t = self.config, self.path, self.config.train
        checkpoint.clean(path)
        checkpoint.clean(path / FOLDER)
        start = Resumed(self.source, config, path) if self.source else Start()
        for problem in start.problems:
            display.warn(f"warning: {problem}; an earlier one is taken")
        backend = open_backend(t.backend, t.device, display.warn, t.precision)
        for model in models(config):
            check_memory(model, t.batch_size, backend)
        dataset = data.load(config.data, config.model.vocab_size, config.model.block_size, cache_dir() / "data", t.seed,
                            start.tokenizer, display.say, display.warn)
        about = describe(config, self.run_id, backend) | {"chat": dataset.chat}
        changed = start.begin(path, config, about, dataset.text_hash)
        records = Records(path, about, dataset.tokenizer, keep=start.step)
        loop = None
        try:
            stages = (Search(config, records, backend.device_name, display, start.search) if config.search
                      else Plan(config))
            loop = Loop(config, stages, backend, dataset, records, display, start.checkpoint)
            records.event(start.step, start.event, f"from step {start.step} on {backend.device_name}")
            if lost and all(event["message"] != lost for event in rows(path / EVENTS)):  # not there, or cut off
                records.event(start.step, "device_lost", lost)
            for problem in start.problems:
                records.event(start.step, "damaged_checkpoint", problem)
            if changed:
                records.event(start.step, "settings_changed", changed)
                display.say(f"settings changed: {changed}")
            display.say(f"run {self.run_id} in {_shown(path)}\n"
                        f"{config.model.parameters():,} parameters on {backend.device_name} ({backend.name}, "
                        f"{backend.driver})\n"
                        f"{len(dataset.train):,} training and {len(dataset.val):,} validation tokens; "
                        f"vocabulary {dataset.tokenizer.vocab_size:,}")
            if config.search and not start.checkpoint:
                display.say(cost_in_words(config))
            finished = loop.run()
            if finished:
                records.event(loop.step, "run_complete", f"{loop.step} steps")
            result = Result(finished, path, loop.step, _summary(loop, finished))
            display.final(result.summary)
            return result
        except DeviceLost as error:
            # At a step whose records stay when the run is resumed.
            records.event(loop.saved if loop else start.step, "device_lost", str(error))
            raise
        finally:
            records.close()


def describe(config: Config, run_id: str, backend: Backend) -> dict[str, Any]:
    """Return what config.json holds: settings, device, versions, and what follows from them."""
    versions = {"helios": helios.__version__, "python": platform.python_version()}
    for package in ("numpy", "tokenizers", "safetensors", "vulkan"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "missing"
    device = device_kind(backend)
    return {"run_id": run_id, "config_hash": config.fingerprint(device), "parameters": config.model.parameters(),
            **config.to_dict(), "device": device, "versions": versions}


def _checked(config: Config) -> Config:
    """Check a search's cost; return the settings with absolute paths, since a run may be resumed from elsewhere."""
    if config.search:
        check_cost(config)
    d = config.data
    found = texts.located(d.data) if isinstance(d.data, str) else tuple(map(texts.located, d.data))
    return config.replaced("data", data=found, val_data=d.val_data and texts.located(d.val_data),
                           tokenizer=d.tokenizer and str(Path(d.tokenizer).resolve()))


def _shown(path: Path) -> str:
    """Return the path, relative to the current directory where it lies below it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _summary(loop: Loop, finished: bool) -> str:
    stage, path, outcome = loop.stage, _shown(loop.records.path), loop.plan.outcome()
    if stage is None:
        return f"done: {outcome}, {path}"
    number = lambda x: "not finite" if x is None else f"{x:.4f}"
    label = f"{stage.label}, " if stage.label else ""
    verdict = "done" if finished else "interrupted"
    parts = [f"{verdict}: {label}step {loop.done} of {stage.steps}", *([outcome] if outcome else [])]
    log = rows(loop.records.path / METRICS)
    if log and loop.done:
        seconds = int(log[-1]["elapsed_ms"] / 1000)
        best = [f"best val {number(loop.best['loss'])} at step {loop.best['step']}"] if loop.best else []
        parts += [f"loss {number(log[-1]['loss'])}", *best,
                  f"{median(row['tokens_per_sec'] for row in log[-100:]):,.0f} tok/s",
                  f"{seconds // 60} min {seconds % 60} s"]
    return ", ".join(parts) + (f", {path}" if finished else f"; continue with --resume {path}")
