"""helios-train: train a GPT on a text, or continue a run."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

import helios
from helios.backends.backend import Backend
from helios.cli.common import HeliosCommand
from helios.errors import UserError
from helios.host import cache_dir
from helios.train import checkpoint, data, telemetry
from helios.train.checkpoint import Checkpoint
from helios.train.config import Config, model_dict, presets, resolve
from helios.train.device import check_memory, open_backend
from helios.train.progress import Display
from helios.train.search.search import check_cost, models, plan, winner
from helios.train.settings import SECTIONS, SETTINGS
from helios.train.telemetry import Records
from helios.train.tokenizer import Tokenizer
from helios.train.trainer import Trainer


def settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """An option for each setting. They arrive as text: flags, --set and files are read by the same rules."""
    for s in reversed([s for s in SETTINGS if s.flag]):
        command = click.option(f"--{s.flag}", s.key, metavar=s.kind.metavar, help=s.help)(command)
    return command


@click.command(cls=HeliosCommand)
@click.option("--preset", metavar="NAME", help=f"Settings to start from: {', '.join(presets())}.")
@click.option("--config", "file", metavar="FILE.toml", help="Settings from a file, above the preset's.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE",
              help="One setting, above the file's; KEY as in config.json, or a flag's name.")
@click.option("--search-config", "search_file", metavar="FILE.toml", help="Settings of a search; implies --search.")
@click.option("--run-dir", metavar="DIR", help="New or empty directory for the run; else runs/<run id>.")
@click.option("--resume", metavar="DIR", help="Continue this run, or this checkpoint of a run.")
@click.option("--quiet", is_flag=True, help="Nothing but errors, warnings and the last line.")
@settings
def main(preset: str | None, file: str | None, assignments: tuple[str, ...], search_file: str | None,
         run_dir: str | None, resume: str | None, quiet: bool, **flags: Any) -> None:
    """Train a GPT on a text.

    Flags win over --set, --set over --config, --config over --preset; with --resume the run's own settings come first.
    """
    origin = _run_of(resume) if resume else None
    saved = telemetry.read_config(origin) if origin else None
    base = {section: saved[section] for section in SECTIONS if section in saved} if saved else None
    config = resolve(preset, file, assignments, flags, base, search_file)
    if config.search:
        check_cost(config)
    for name in ("data", "val_data"):  # the run may be continued from another directory
        source = getattr(config.data, name)
        if source and not source.startswith("synth:"):
            setattr(config.data, name, str(Path(source).resolve()))
    in_place = origin is not None and (run_dir is None or Path(run_dir).resolve() == origin.resolve())
    run_id = saved["run_id"] if saved and in_place else telemetry.run_id(config.data.data)
    path = origin if origin and in_place else Path(run_dir or Path("runs") / run_id).absolute()
    display = Display(quiet)
    with telemetry.locked(path, new=not in_place):
        finished = train(config, path, run_id, display, origin, resume, base)
    if not finished:
        click.get_current_context().exit(130)


def train(config: Config, path: Path, run_id: str, display: Display, origin: Path | None = None,
          resume: str | None = None, base: dict[str, Any] | None = None) -> bool:
    """Run in the locked directory `path` until the end, or a signal (False). `resume`, in the run `origin` of settings
    `base`, is where to go on from."""
    resumed: Checkpoint | None = None
    tokenizer: Tokenizer | None = None
    checkpoint.clean(path)
    checkpoint.clean(path / "search")
    problems: list[str] = []
    if origin is not None and resume is not None:
        resumed, problems = checkpoint.find(resume)
        _check_resumable(config, resumed, base)
        tokenizer = _tokenizer(origin, resumed)
        later = [p.name for p in checkpoint.steps(path) if int(p.name[5:]) > resumed.state["step"]]
        if later and not problems:
            raise UserError(f"{path} has later checkpoints ({', '.join(later)}); remove them to continue from step "
                            f"{resumed.state['step']}, or give a new --run-dir")
    for problem in problems:
        display.warn(f"warning: {problem}; an earlier one is taken")
    backend = open_backend(config.train.backend, config.train.device, display.warn, config.train.precision)
    for model in models(config):
        check_memory(model, config.train.batch_size, backend)
    dataset = data.load(config.data.data, config.data.val_data, config.model.vocab_size, config.model.block_size,
                        cache_dir() / "data", config.train.seed, tokenizer)
    # Settings name a text by its path: what is there may have changed.
    same = base is not None and base["data"] == config.to_dict()["data"]
    if resumed and same and resumed.state["text_hash"] != dataset.text_hash:
        raise UserError(f"{config.data.data} or its validation text is no longer what the run began with; "
                        f"restore it, or name the other text with --data")
    if resumed and origin and origin != path:
        try:
            for name in (*telemetry.LOGS, telemetry.TOKENIZER):
                if (origin / name).exists():
                    shutil.copyfile(origin / name, path / name)
            shutil.rmtree(path / "search", ignore_errors=True)
            if (origin / "search").exists():
                shutil.copytree(origin / "search", path / "search")
        except OSError as error:
            raise UserError(f"cannot copy {origin} to {path}: {error.strerror or error}") from error
    step = resumed.state["step"] if resumed else 0
    about = describe(config, run_id, backend)
    if resumed and (found := winner(resumed.state.get("search"), config)):
        about["symbio_winner"] = found
    records = Records(path, about, dataset.tokenizer, keep=step)
    try:
        trainer = Trainer(config, backend, dataset, records, display, resumed)
        records.event(step, "resumed" if resumed else "run_start", f"from step {step} on {backend.device_name}")
        for problem in problems:
            records.event(step, "damaged_checkpoint", problem)
        if resumed and resumed.state["config_hash"] != config.hash:
            before, now = ({s.key: sections.get(s.section, {}).get(s.key) for s in SETTINGS}
                           for sections in (base or {}, config.to_dict()))
            changed = [f"{key} {before[key]} → {now[key]}" for key in now if base and before[key] != now[key]]
            message = ", ".join(changed) or "since the checkpoint"
            records.event(step, "settings_changed", message)
            display.say(f"settings changed: {message}")
        display.say(f"run {run_id} in {_shown(path)}\n"
                    f"{config.model.parameters():,} parameters on {backend.device_name} ({backend.name}, "
                    f"{backend.driver})\n{len(dataset.train):,} training and {len(dataset.val):,} validation tokens; "
                    f"vocabulary {dataset.tokenizer.vocab_size:,}")
        if config.search and not resumed:
            display.say(plan(config))
        finished = trainer.run()
        if finished:
            records.event(trainer.step, "run_complete", f"{trainer.step} steps")
        display.final(_summary(trainer, finished))
    finally:
        records.close()
    return finished


def finish(config: Config, path: Path, display: Display, what: str = "run") -> bool:
    """Begin the run of `path` or go on with it, to its end (True) or a signal; nothing where it has ended.

    Raises UserError where another one is there; `what` is its name in that.
    """
    if not telemetry.finished(path) and not checkpoint.steps(path):
        with telemetry.locked(path, new=True):
            return train(config, path, telemetry.run_id(config.data.data), display)
    with telemetry.locked(path, new=False):
        saved = telemetry.read_config(path)
        base = {section: saved[section] for section in SECTIONS if section in saved}
        _check_same(config.to_dict(), base, path, what)
        return telemetry.finished(path) or train(config, path, saved["run_id"], display, path, str(path), base)


def _check_same(wanted: Mapping[str, Any], base: Mapping[str, Any], path: Path, what: str) -> None:
    for name in reversed(SECTIONS):  # a search before the others: some of their settings follow from its budget
        for key, here in wanted.get(name, {}).items():
            if (there := base.get(name, {}).get(key)) != here:
                raise UserError(f"{path} holds another {what}: {key} is {there} there and {here} here; give the same "
                                f"command again, or another --run-dir")


def _check_resumable(config: Config, resumed: Checkpoint, base: dict[str, Any] | None) -> None:
    """Raises UserError unless the settings may go on from the checkpoint."""
    search, done = resumed.state["search"], resumed.state["step"]
    if bool(config.search) != (search is not None):
        raise UserError(f"{resumed.path} is of a run {'with' if search else 'without'} a search, which cannot change; "
                        f"start a new run")
    if search and base:
        _check_same_search(base, config.to_dict(), search["at"] is None)
    # The model of a search is its candidate's.
    own = {key: resumed.state["model"].get(key) for key in ("activation", "ffn_dim")} if search else {}
    checkpoint.check_model(resumed, model_dict(config.model) | own)
    if config.train.seed != (seed := resumed.state["seed"]):
        raise UserError(f"--seed {config.train.seed}: the run has seed {seed}, which cannot change; leave --seed "
                        f"out, or start a new run")
    if search is None or search["at"] is None:
        done -= search["spent"] if search else 0
        if config.train.steps < done:
            raise UserError(f"--steps {config.train.steps}: the run is at step {done} already")


def _check_same_search(base: dict[str, Any], now: dict[str, Any], over: bool) -> None:
    """Raises UserError where candidates would be trained, or were, in different ways."""
    free = {"steps", "sample_interval", "checkpoint_interval", "backend", "device", "max_cost"}
    for section in ("search",) if over else ("train", "data", "search", "monitor"):
        for key, value in now[section].items():
            if key not in free and base.get(section, {}).get(key) != value:
                when = "in a run with a search" if over else "before the search is over"
                raise UserError(f"{key} was {base.get(section, {}).get(key)!r} when the search began, and is "
                                f"{value!r}: it cannot change {when}; start a new run")


def _shown(path: Path) -> str:
    """As short as it can be written from here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def describe(config: Config, run_id: str, backend: Backend) -> dict[str, Any]:
    """config.json."""
    versions = {"helios": helios.__version__, "python": platform.python_version()}
    for package in ("numpy", "tokenizers", "safetensors", "vulkan"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "missing"
    return {"run_id": run_id, "config_hash": config.hash, "parameters": config.model.parameters(), **config.to_dict(),
            "device": {"backend": backend.name, "name": backend.device_name, "driver": backend.driver},
            "versions": versions}


def _run_of(resume: str) -> Path:
    """The run directory that --resume means."""
    path = Path(resume).absolute()
    if not path.is_dir():
        raise UserError(f"--resume {resume}: no such directory; give the directory of a run or of a checkpoint")
    return path.parent.parent if checkpoint.is_checkpoint(path) else path


def _tokenizer(run: Path, resumed: Checkpoint) -> Tokenizer:
    tokenizer = Tokenizer.load(run / telemetry.TOKENIZER)
    if tokenizer.fingerprint != resumed.state["tokenizer"]:
        raise UserError(f"{run / telemetry.TOKENIZER} is not the vocabulary that {resumed.path} was trained with")
    return tokenizer


def _summary(trainer: Trainer, finished: bool) -> str:
    rows = telemetry.rows(trainer.records.path / telemetry.METRICS)
    number = lambda x: "not finite" if x is None else f"{x:.4f}"
    label = f"{trainer.leg.label}, " if trainer.leg.label else ""
    parts = [f"{'done' if finished else 'interrupted'}: {label}step {trainer.done} of {trainer.leg.steps}"]
    if trainer.search and (found := trainer.search.summary())["status"] == "complete":
        won = f"winner {found['winner_name']} ({found['winner_activation']})"
        if trainer.config.search.after == "none":
            return f"done: search of {len(trainer.search.candidates)} candidates, {won}, {_shown(trainer.records.path)}"
        parts.append(won)
    if rows and trainer.done:
        seconds = int(rows[-1]["elapsed_ms"] / 1000)
        rates = sorted(row["tokens_per_sec"] for row in rows[-100:])
        parts += [f"loss {number(rows[-1]['loss'])}", *([f"best val {number(trainer.best['loss'])} at step "
                  f"{trainer.best['step']}"] if trainer.best else []), f"{rates[len(rates) // 2]:,.0f} tok/s",
                  f"{seconds // 60} min {seconds % 60} s"]
    path = _shown(trainer.records.path)
    return ", ".join(parts) + (f", {path}" if finished else f"; continue with --resume {path}")


if __name__ == "__main__":
    main()
