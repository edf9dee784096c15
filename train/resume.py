"""What a run goes on from, and whether its settings allow it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from helios.errors import UserError
from helios.train import checkpoint
from helios.train.config import SECTIONS, SETTINGS, Config
from helios.train.records import directory
from helios.train.records.directory import LOGS, TOKENIZER
from helios.train.tokenizer import Tokenizer

SEARCH = "search"  # the folder of a search in a run directory


def settings_of(source: str | Path) -> dict[str, Any]:
    """Return the sections of settings of the run or checkpoint directory `source`. Raises UserError."""
    saved = directory.read_config(directory.run_of(Path(source).absolute()))
    return {section: saved[section] for section in SECTIONS if section in saved}


class Start:
    """A checkpoint of a run, with that run's settings and vocabulary.

    problems: what is wrong with newer checkpoints, a line each. Raises UserError where `source`, a run or checkpoint
    directory, has none that is whole, or where `config` cannot go on from it in the directory `path`.
    """

    def __init__(self, source: Path, config: Config, path: Path) -> None:
        self.origin = directory.run_of(source)
        self.saved = directory.read_config(self.origin)
        self.checkpoint, self.problems = checkpoint.find(source)
        self.state = self.checkpoint.state
        self.step: int = self.state["step"]
        self._check(config)
        self.tokenizer = tokenizer_of(self.checkpoint)
        later = [p.name for p in checkpoint.steps(path) if checkpoint.step_of(p) > self.step]
        if later and not self.problems:
            raise UserError(f"{path} has later checkpoints ({', '.join(later)}); remove them to continue from step "
                            f"{self.step}, or give a new --run-dir")

    def _check(self, config: Config) -> None:
        search, done = self.state["search"], self.step
        if bool(config.search) != (search is not None):
            raise UserError(f"{self.checkpoint.path} is of a run {'with' if search else 'without'} a search, which "
                            "cannot change; start a new run")
        if search:
            self._check_search(config.to_dict(), search["at"] is None)
        # The model of a search is its candidate's.
        own = {key: self.state["model"].get(key) for key in ("activation", "ffn_dim")} if search else {}
        checkpoint.check_model(self.checkpoint, config.model.to_dict() | own)
        if config.train.seed != (seed := self.state["seed"]):
            raise UserError(f"--seed {config.train.seed}: the run has seed {seed}, which cannot change; leave --seed "
                            f"out, or start a new run")
        if search is None or search["at"] is None:
            done -= search["spent"] if search else 0
            if config.train.steps < done:
                raise UserError(f"--steps {config.train.steps}: the run is at step {done} already")

    def _check_search(self, now: Mapping[str, Any], over: bool) -> None:
        """Raise UserError where candidates would be trained, or were, in different ways."""
        free = {"steps", "sample_interval", "checkpoint_interval", "keep", "keep_every", "retries", "backend", "device",
                "max_cost"}
        for section in (SEARCH,) if over else ("train", "data", SEARCH, "monitor"):
            for key, value in now[section].items():
                was = self.saved.get(section, {}).get(key)
                if key not in free and was != value:
                    when = "in a run with a search" if over else "before the search is over"
                    raise UserError(f"{key} was {was!r} when the search began, and is {value!r}: it cannot change "
                                    f"{when}; start a new run")

    def check_text(self, config: Config, text_hash: str) -> None:
        """Raise UserError where the texts have the names that they had, and other contents."""
        if self.saved["data"] == config.data.to_dict() and self.state["text_hash"] != text_hash:
            raise UserError(f"{config.data.data} or its validation text is no longer what the run began with; "
                            f"restore it, or name the other text with --data")

    def copy_to(self, path: Path) -> None:
        """Copy the records to the directory `path`, unless they are there. Raises UserError."""
        if self.origin == path:
            return
        try:
            for name in (*LOGS, TOKENIZER):
                if (self.origin / name).exists():
                    shutil.copyfile(self.origin / name, path / name)
            shutil.rmtree(path / SEARCH, ignore_errors=True)
            if (self.origin / SEARCH).exists():
                shutil.copytree(self.origin / SEARCH, path / SEARCH)
        except OSError as error:
            raise UserError(f"cannot copy {self.origin} to {path}: {error.strerror or error}") from error

    def changes(self, about: Mapping[str, Any]) -> str:
        """Return in words what config.json is to say otherwise than it did; "" where that changes no bit."""
        if self.state["config_hash"] == about["config_hash"]:
            return ""
        places = [(s.section, s.key) for s in SETTINGS] + [("device", key) for key in about["device"]]
        both = [(key, *(where.get(section, {}).get(key) for where in (self.saved, about))) for section, key in places]
        return ", ".join(f"{key} {was} → {now}" for key, was, now in both if was != now) or "since the checkpoint"


def tokenizer_of(found: checkpoint.Checkpoint) -> Tokenizer:
    """Return the vocabulary of the checkpoint's run. Raises UserError where it is not the one that it has."""
    path = found.path.parent.parent / TOKENIZER
    tokenizer = Tokenizer.load(path)
    if tokenizer.fingerprint != found.state["tokenizer"]:
        raise UserError(f"{path} is not the vocabulary that {found.path} was trained with")
    return tokenizer
