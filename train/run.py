"""A run: its directory, its settings and where it starts from.

    result = Run.create(resolve("quickstart"), "runs/first").train()
"""

from __future__ import annotations

import gc
import os
import platform
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import helios
from helios import backends
from helios.backends.backend import Backend
from helios.errors import DeviceLost, Diverged, UserError
from helios.host import cache_dir, machine
from helios.train import checkpoint, data, directory, texts
from helios.train.config import SECTIONS, Config, resolve
from helios.train.device import MIB, check_memory, device_kind, memory_needed, open_backend, tuned
from helios.train.loop import Loop
from helios.train.monitors.trouble import came_to_nothing
from helios.train.morph import told
from helios.train.progress import Display
from helios.train.records import layout
from helios.train.records.client import Client
from helios.train.records.layout import EVENTS, METRICS, PLAN
from helios.train.records.overview import utc
from helios.train.records.records import Listener, Records
from helios.train.records.reporter import reporting
from helios.train.records.rows import lines, rows
from helios.train.resume import Initialised, Resumed, Start, settings_of
from helios.train.stage import Plan
from helios.train.tokenizer import check_size

Planner = Callable[[Config], Plan]
RECENT = 100  # last steps, of which the speed that is told at the end is the median


class Result(NamedTuple):
    """How a run ended."""

    finished: bool  # False: a signal ended or `until` paused it, and it can be resumed
    path: Path
    step: int
    summary: str  # in one line
    trouble: str = ""  # why a finished training came to nothing; "" where it did not
    paused: bool = False  # by `until`, and all that is to be measured there was
    signal: int | None = None  # the one that ended it

    def __str__(self) -> str:
        return self.summary


@dataclass(frozen=True)
class Run:
    """A run in the directory `path`; `create`, `resume` and `open` make one. Nothing is written before `train`.

    plan: makes the plan of the run from its settings: Plan, that of a training alone; train.plans.planned also
    that of a search. about: what else config.json is to say of the run, in JSON's values by keys of their own; it stays
    as the run goes on in its directory. source: the run or checkpoint directory that it goes on from; None for a new
    run. anew: a new run may take the place of one that ended before its first checkpoint. Raises UserError where the
    plan is not for these settings, as where a search may cost more than max_cost.
    """

    path: Path
    config: Config
    run_id: str
    plan: Planner = Plan
    about: Mapping[str, Any] = field(default_factory=dict)
    source: Path | None = None
    anew: bool = False

    def __post_init__(self) -> None:
        self.plan(self.config).check()

    @classmethod
    def create(cls, config: Config, path: str | Path | None = None, *, plan: Planner = Plan,
               about: Mapping[str, Any] | None = None) -> Run:
        """Return a new run in the new or empty directory `path`; None: in runs/<run id>."""
        config = _checked(config)
        run_id = directory.run_id(texts.sources(config.data.data)[0].name)
        return cls(Path(Path("runs") / run_id if path is None else path).absolute(), config, run_id, plan, about or {})

    @classmethod
    def resume(cls, source: str | Path, config: Config | None = None, path: str | Path | None = None, *,
               plan: Planner = Plan, about: Mapping[str, Any] | None = None) -> Run:
        """Return a run that goes on from `source`, the directory of a run or of one of its checkpoints.

        config: settings to use instead of its own. path: a new or empty directory, in which a run of its own goes on
        with a copy of the records; None: it goes on where it is. Raises UserError where `source` holds no run.
        """
        source = Path(source).absolute()
        origin = directory.run_of(source)
        config = _checked(config or resolve(base=settings_of(source)))
        if path is None or os.path.realpath(path) == os.path.realpath(origin):
            return cls(origin, config, layout.read_config(origin)["run_id"], plan, about or {}, source)
        run_id = directory.run_id(texts.sources(config.data.data)[0].name)
        return cls(Path(path).absolute(), config, run_id, plan, about or {}, source)

    @classmethod
    def open(cls, config: Config, path: str | Path, what: str = "run", *, plan: Planner = Plan,
             about: Mapping[str, Any] | None = None, free: Collection[str] = ()) -> Run:
        """Return the run with these settings in the directory `path`, be it new, begun or finished.
        Raises UserError where a run with other settings, but for those in `free`, is there; the message calls it
        `what`."""
        path = Path(path).absolute()
        if not layout.finished(path) and not checkpoint.directories(path):
            run = replace(cls.create(config, path, plan=plan, about=about), anew=True)
            begun = layout.read_object(path / layout.CONFIG) or {}  # and killed before its first checkpoint
            return replace(run, run_id=begun.get("run_id", run.run_id))
        with directory.locked(path, new=False):
            run, theirs = cls.resume(path, config, plan=plan, about=about), settings_of(path)
        for name, ours in reversed(run.config.to_dict().items()):  # the search's first: others follow from them
            for key, here in ours.items():
                if (there := theirs.get(name, {}).get(key)) != here and key not in free:
                    raise UserError(f"{path} holds another {what}: {key} is {there} there and {here} here; give what "
                                    "is there, or move that directory away")
        return run

    @property
    def finished(self) -> bool:
        """Return whether the run has come to its end."""
        return layout.finished(self.path)

    def train(self, display: Display | None = None, until: int | None = None) -> Result:
        """Train to the end or until a signal comes; the directory is locked meanwhile.

        display: where progress is shown; by default on the console. until: a step of the run, those of a search
        included, to pause after, with an evaluation and a checkpoint; going on gives the bits of a run that never
        paused. After a lost device the run goes on from its last checkpoint, at most `retries` times; then DeviceLost
        is raised. Raises UserError for what a user can put right, and Diverged where the weights are not finite.
        """
        if until is not None and until < 1:
            raise UserError(f"until: given {until}, expected a step of the run, from 1 on")
        display, run, lost = display or Display(), self, None
        origin, left = self.source and directory.run_of(self.source), self.config.train.retries
        with (directory.locked(self.path, self.path != origin, self.anew),
              reporting(self.path, self.config.train.report, display.warn) as report):
            while True:
                try:
                    return run._train(display, until, lost, report)
                except DeviceLost as error:
                    if not left:
                        raise
                    display.warn(f"warning: {error}; going on from the last checkpoint")
                    lost = DeviceLost(str(error))  # a new one, for this one's traceback holds what was on the device
                    lost.device = error.device
                left -= 1
                backends.forget()
                gc.collect()
                run = replace(self, source=self.path if checkpoint.directories(self.path) else self.source)

    def preview(self) -> str:
        """Return in words what `train` would do; no device is opened and nothing is written.

        Raises UserError where the directory, the texts or the checkpoint do not allow it.
        """
        m, t, d, plan = self.config.model, self.config.train, self.config.data, self.plan(self.config)
        if self.source is None or self.path != directory.run_of(self.source):
            directory.check_new(self.path, self.anew)
        start = self._start(plan)
        given = data.given_tokenizer(d.tokenizer, m.vocab_size) if d.tokenizer else start.tokenizer
        check_size(m.vocab_size)
        named = texts.sources(d.data)
        for name in filter(None, (*(source.name for source in named), d.val_data)):
            if not name.startswith(texts.SYNTH):  # the embedded corpus is always there
                texts.read(name, d.format)
        most = max(memory_needed(model, t.batch_size, plan.beside()) for model in plan.models())
        lines = [f"{m.parameters():,} parameters: {m.n_layer} blocks, {m.n_head} heads, width {m.n_embd}, "
                 f"MLPs of {', '.join(map(str, dict.fromkeys(m.ffn_dims)))} with {m.activation}, vocabulary "
                 f"{m.vocab_size:,}",
                 f"{t.steps:,} steps of {t.batch_size * t.accum:,} × {m.block_size:,} tokens, from step {start.step:,}",
                 f"learning rate {t.lr:g} after {t.warmup:,} steps, {t.lr_min:g} at the end",
                 f"about {most / MIB:,.0f} MiB of memory for batch {t.batch_size:,}",
                 f"text {', '.join(source.name for source in named)}, validation {d.val_data or 'a tenth of it'}",
                 "not checked: whether the text "
                 + f"supports a vocabulary of {m.vocab_size:,} and " * (given is None) + "is long enough"]
        if isinstance(start, Initialised):
            lines.append(f"weights of {start.parent.path}, --morph {t.morph}; {told(start.morphed(given), whole=True)}")
            lines += [f"warning: {start.warning}"] * bool(start.warning)
            lines += ["not checked: which tokens of the new vocabulary the old one has"] * (given is None)
        if cost := plan.cost():
            lines.append(cost)
        if rules := self.config.monitor.actions:
            lines.append(f"actions: {rules}")
        if t.report != "none":
            lines.append(f"reported to {Client(t.report).url}")
        return "\n".join([*lines, f"run directory {_shown(self.path)}"])

    def _start(self, plan: Plan) -> Start:
        if self.source:
            return Resumed(self.source, self.config, self.path, plan)
        return Initialised(self.config) if self.config.train.init_from else Start()

    # -- in the locked directory --------------------------------------------------------------------------------------
    def _train(self, display: Display, until: int | None, lost: DeviceLost | None, report: Callable[[], None]
               ) -> Result:
        """Make one attempt to train. lost: the device loss that ended the one before; None: none did. report: begins to
        report the run."""
        config, path, t, plan = self.config, self.path, self.config.train, self.plan(self.config)
        checkpoint.clean(path)
        checkpoint.clean(path / PLAN)
        start = self._start(plan)
        for problem in start.problems:
            display.warn(f"warning: {problem}; an earlier one is taken")
        if start.warning:
            display.warn(f"warning: {start.warning}")
        backend = open_backend(t.backend, t.device, display.warn, t.precision, t.simd_width, t.tiles)
        device = device_kind(backend)
        if lost and lost.device and lost.device != device:  # whose bits, and whose speed, would be others
            raise UserError(f"{lost}; it has not come back, and {device['name']} is another device: to go on there, "
                            f"give --resume {path}")
        for model in plan.models():
            check_memory(model, t.batch_size, backend, beside=plan.beside())
        dataset = plan.dataset or data.load(config.data, config.model.vocab_size, config.model.block_size,
                                            cache_dir() / "data", t.seed, start.tokenizer, display.say, display.warn)
        made = start.prepare(dataset.tokenizer)
        about = describe(config, self.run_id, backend, start.init) | {"chat": dataset.chat}
        if taken := {*about, *SECTIONS, *plan.keys, "init"} & self.about.keys():
            raise UserError(f"about: {', '.join(sorted(taken))} is config.json's own; use another name")
        about |= self.about
        changed = start.begin(path, config, about, dataset.text_hash)
        records = Records(path, about, dataset.tokenizer, start.step, start.unfinished)
        report()
        loop = None
        try:
            if config.train.log == "tensorboard":
                records.listeners.append(_tensorboard()(path, start.step + (not start.unfinished), display.warn))
            loop = Loop(config, plan, backend, dataset, records, display, start.checkpoint, until, start.weights)
            idle = loop.stage is None or (loop.over and loop.pending is None)
            if not idle:  # and only now, so that a resumed run finds no settings that were not used
                records.config()
            if lost and all(event["message"] != str(lost) for event in rows(path / EVENTS)):  # not there, or cut off
                records.event(start.step, "device_lost", str(lost))
            records.event(start.step, start.event, f"from step {start.step} on {backend.device_name}")
            if made:
                records.event(start.step, "initialised", made.partition("\n")[0])
            for problem in start.problems:
                records.event(start.step, "damaged_checkpoint", problem)
            if changed and idle:
                over, why = loop.why
                remedy = f"{why} ended it, so change that rule" if over == "actions" else "give more --steps"
                display.warn(f"warning: the run is at its end, and this is not used: {changed}; {remedy}")
            elif changed:
                records.event(start.step, "settings_changed", changed)
                display.say(f"settings changed: {changed}")
            display.say(f"run {self.run_id} in {_shown(path)}\n"
                        f"{config.model.parameters():,} parameters on {backend.device_name} ({backend.name}, "
                        f"{backend.driver})\n"
                        f"{len(dataset.train):,} training and {len(dataset.val):,} validation tokens; "
                        f"vocabulary {dataset.tokenizer.vocab_size:,}")
            if made:
                display.say(made)
            if (cost := plan.cost()) and not start.checkpoint:
                display.say(cost)
            finished = loop.run()
            over, why = loop.why
            if finished and over:
                records.event(loop.step, "stopped", why, reason=over)
            elif finished:
                records.event(loop.step, "run_complete", f"{loop.step} steps")
            log = lambda: (row for _, row in lines(path / METRICS) if row["step"] > loop.first)
            last = deque(log(), RECENT)
            trouble = (plan.why or came_to_nothing(log(), last[-1] if last else None)
                       ) if finished and loop.stage else ""
            paused = not finished and loop.signal is None
            own = start.steps if idle and over else None  # for those asked for now are not used
            result = Result(finished, path, loop.step, _summary(loop, finished, last, trouble, own), trouble, paused,
                            loop.signal)
            display.final(result.summary)
            return result
        except Diverged as error:
            records.event(loop.step if loop else start.step, "diverged", str(error))
            error.signal = loop.signal if loop else None
            raise
        except DeviceLost as error:
            # At a step whose records stay when the run is resumed.
            step = loop.saved if loop else start.step
            records.event(step, "device_lost", str(error))
            error.device = device
            if loop is None or loop.signal is None:
                raise
            result = Result(False, path, step, f"interrupted at step {step}, as the device was lost ({error}); "
                                               f"{_way_on(path)}", signal=loop.signal)
            display.final(result.summary)
            return result
        except KeyboardInterrupt:
            _last_words(records, loop.step if loop else start.step, "interrupted", "at once, without a checkpoint")
            raise KeyboardInterrupt(f"interrupted at once, without a checkpoint; {_way_on(path)}") from None
        except Exception as error:
            what = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            _last_words(records, loop.step if loop else start.step, "failed", f"{what}{error}")
            raise
        finally:
            records.close()


def describe(config: Config, run_id: str, backend: Backend, init: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what config.json holds: settings, device, machine, versions, and what follows from them.
    init: Start.init."""
    versions = {"helios": helios.__version__, "python": platform.python_version()}
    for package in ("numpy", "tokenizers", "safetensors", "vulkan"):
        versions[package] = metadata.version(package)
    device, begun = device_kind(backend), {"init": init} if init else {}
    return {"run_id": run_id, "created": utc(time.time()),
            "config_hash": config.fingerprint(device, init["begun_with"] if init else ""),
            "parameters": config.model.parameters(), **config.to_dict(), "device": device, "host": machine(),
            "tuned": tuned(backend), "versions": versions, **begun}


def _last_words(records: Records, step: int, kind: str, message: str) -> None:
    """Write the event of a run's end, unless it is complete, where that is still possible: the disk may be full."""
    with suppress(UserError, OSError):
        if not layout.finished(records.path):
            records.event(step, kind, " ".join(message.split()))


def _checked(config: Config) -> Config:
    """Check that the log's library is there; return the settings with absolute paths, since a run may be resumed from
    elsewhere."""
    if config.train.log == "tensorboard":
        _tensorboard()
    d = config.data
    found = texts.located(d.data) if isinstance(d.data, str) else tuple(map(texts.located, d.data))
    if config.train.init_from:
        config = config.replaced("train", init_from=os.path.abspath(config.train.init_from))
    return config.replaced("data", data=found, val_data=d.val_data and texts.located(d.val_data),
                           tokenizer=d.tokenizer if d.tokenizer in texts.sent else (
                               d.tokenizer and os.path.realpath(d.tokenizer)))


def _tensorboard() -> Callable[..., Listener]:
    """Return what writes for TensorBoard. Raises UserError where its library is not installed."""
    from helios.train.records.tensorboard import TensorBoard

    return TensorBoard


def _shown(path: Path) -> str:
    """Return the path, relative to the current directory where it lies below it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _way_on(path: Path) -> str:
    """Return in words how the run in the directory `path` goes on that was interrupted."""
    if checkpoint.directories(path):
        return f"continue with --resume {_shown(path)}"
    if any(lines(path / METRICS)):
        return f"there is none from before in {_shown(path)}: {directory.AGAIN}"
    return f"no step was made; start again with --run-dir {_shown(path)}"


def _summary(loop: Loop, finished: bool, last: Sequence[Mapping[str, Any]], trouble: str, steps: int | None) -> str:
    stage, path, outcome = loop.stage, _shown(loop.records.path), loop.plan.outcome()
    if stage is None:
        return f"done: {outcome}, {path}"
    number = lambda x: "not finite" if x is None else f"{x:.4f}"
    label = f"{stage.label}, " if stage.label else ""
    verdict = (f"done, but {trouble}" if trouble else "done" if finished else
               "paused" if loop.signal is None else "interrupted")
    stopped = loop.monitors.stopped if finished and loop.why[0] == "actions" else ""
    parts = [f"{verdict}: {label}step {loop.done} of {steps or stage.steps}", *filter(None, (outcome, stopped))]
    if last and loop.done:
        seconds = int(last[-1]["elapsed_ms"] / 1000)
        best = [f"best val {number(loop.best['loss'])} at step {loop.best['step'] - loop.first}"] if loop.best else []
        parts += [f"loss {number(last[-1]['loss'])}", *best,
                  f"{median(row['tokens_per_sec'] for row in last):,.0f} tok/s",
                  f"{seconds // 60} min {seconds % 60} s"]
    return ", ".join(parts) + (f", {path}" if finished else f"; {_way_on(loop.records.path)}")
