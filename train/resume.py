"""The start of a run: from nothing, from another run's weights, or from a checkpoint that its settings fit."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from helios.errors import UserError
from helios.model import GPTConfig
from helios.model.settings import declared
from helios.train import checkpoint, directory, morph
from helios.train.checkpoint import MODEL, Checkpoint
from helios.train.config import SECTIONS, SETTINGS, Config, DataConfig
from helios.train.data import given_tokenizer
from helios.train.morph import Morph
from helios.train.records import layout
from helios.train.records.layout import LOGS, METRICS, PLAN, REPLACED, TOKENIZER
from helios.train.records.rows import lines, rows
from helios.train.stage import SEARCH, Plan, kind_of
from helios.train.texts import sent, sources
from helios.train.tokenizer import Tokenizer


def settings_of(source: str | Path) -> dict[str, Any]:
    """Return the settings of the run or checkpoint directory `source`, by section. Raises UserError."""
    saved = layout.read_config(directory.run_of(Path(source).absolute()))
    # A run of an older version lacks settings that are new, and had their defaults.
    return {section: {s.key: s.default for s in declared(cls)} | saved[section]
            for section, cls in SECTIONS.items() if section in saved}


class Start:
    """The start of a new run, from nothing."""

    event = "run_start"
    step = 0
    unfinished = False  # whether the evaluation of that step was interrupted
    problems: Sequence[str] = ()  # why newer checkpoints than the one used cannot be used, a line each
    warning = ""  # what a user should know of the start
    steps: int | None = None  # those that the run was asked for before; None: it is new
    checkpoint: Checkpoint | None = None
    tokenizer: Tokenizer | None = None
    weights: Mapping[str, np.ndarray] | None = None  # to begin with; None: new ones, or the checkpoint's
    init: Mapping[str, Any] | None = None  # what config.json says of where the run's first weights are from

    def prepare(self, tokenizer: Tokenizer) -> str:
        """Make the first weights for this vocabulary, and return in words what was made. Raises UserError."""
        return ""

    def begin(self, path: Path, config: Config, about: dict[str, Any], text_hash: str) -> str:
        """Prepare the directory `path`, complete config.json's content `about`, and return which settings changed.
        text_hash: of the texts as they are now. Raises UserError where the run cannot begin there."""
        shutil.rmtree(path / PLAN, ignore_errors=True)  # left by a run that ended before its first checkpoint
        return ""


class Initialised(Start):
    """The start of a new run with the weights of another run's checkpoint, and with its vocabulary unless another one
    is asked for.

    Raises UserError where the checkpoint that config.train.init_from names cannot be used.
    """

    def __init__(self, config: Config) -> None:
        assert config.train.init_from is not None
        self.config = config
        found, self.problems = directory.parent(sent.get(config.train.init_from, config.train.init_from))
        self.parent = found._replace(optimizer={})  # which is of no use, and large
        self.model = GPTConfig.from_dict(self.parent.state["model"])
        self.theirs, self.saved = tokenizer_of(self.parent), layout.read_config(self.parent.path.parent.parent)
        if (text := self.saved["data"]["data"]) != config.data.data == DataConfig().data:
            self.warning = (f"the text is {config.data.data}, and the parent's was "
                            f"{text if isinstance(text, str) else ', '.join(text)}: give --data to say which")
        if (d := config.data).tokenizer is None and config.model.vocab_size == self.theirs.vocab_size:
            self.tokenizer = self.theirs
        given = given_tokenizer(d.tokenizer, config.model.vocab_size) if d.tokenizer else self.tokenizer
        morph.check(self.model, config.model, config.train.morph, self._tokens(given))

    def morphed(self, tokenizer: Tokenizer | None) -> Morph:
        """Return the weights for this vocabulary; None: one that is not made yet. Raises UserError."""
        t = self.config.train
        return morph.morph(self.parent.model, self.model, self.config.model, t.morph, t.seed, self._tokens(tokenizer))

    def _tokens(self, tokenizer: Tokenizer | None) -> morph.Texts | None:
        return (self.theirs.tokens, tokenizer.tokens) if tokenizer else None

    def prepare(self, tokenizer: Tokenizer) -> str:
        found, t, path, digest = self.morphed(tokenizer), self.config.train, self.parent.path, hashlib.sha256()
        for name, value in found.weights.items():
            digest.update(name.encode() + value.tobytes())
        place = t.init_from if t.init_from in sent else path  # by the name that it has where it came from
        self.weights, self.init = found.weights, {
            "run_id": self.saved["run_id"], "path": str(place), "step": self.parent.state["step"],
            "sha256": self.parent.state["files"][MODEL]["sha256"], "tokens": _tokens_read(self.parent, self.saved),
            "how": t.morph, "changes": found.changes, "table": [list(line) for line in morph.grouped(found.table)],
            "begun_with": digest.hexdigest()}
        return f"weights of {place}, --morph {t.morph}; {morph.told(found)}"


class Resumed(Start):
    """The start from a checkpoint, with its vocabulary.

    Raises UserError where the run or checkpoint directory `source` has no whole checkpoint, or where a run with the
    settings `config` and that plan cannot go on from it in the directory `path`.
    """

    event = "resumed"

    def __init__(self, source: Path, config: Config, path: Path, plan: Plan) -> None:
        self.plan, self.origin = plan, directory.run_of(source)
        self.saved = layout.read_config(self.origin) | settings_of(self.origin)
        self.steps = self.saved["train"]["steps"]
        if source == self.origin and not checkpoint.directories(source):
            raise directory.without_checkpoint(source)
        self.checkpoint, self.problems = found, _ = checkpoint.find(source)
        self.state, self.step = found.state, found.state["step"]
        self.unfinished = "pending" in found.state
        self.init = self.saved.get("init")
        self._check(config, found)
        self.tokenizer = tokenizer_of(found)
        later = [p.name for p in checkpoint.directories(path) if checkpoint.step_of(p) > self.step]
        if later and not self.problems:
            raise UserError(f"{path} has later checkpoints ({', '.join(later)}); remove them to continue from step "
                            f"{self.step}, or give a new --run-dir")

    def _check(self, config: Config, found: Checkpoint) -> None:
        if (was := kind_of(self.state)) not in self.plan.continues:
            raise UserError(f"{found.path} is of a run {was}, which cannot change; start a new run")
        self.plan.check_resumed(found, self.saved)
        if config.data.tokenizer != self.saved["data"]["tokenizer"]:
            raise UserError(f"--tokenizer {config.data.tokenizer}: the run has a vocabulary of its own, which cannot "
                            f"change; leave --tokenizer out, or start a new run")
        for flag, here, there in (("init-from", config.train.init_from, self.saved["train"]["init_from"]),
                                  ("morph", config.train.morph, self.saved["train"]["morph"])):
            if here != there:
                raise UserError(f"--{flag} {here}: the run has begun, and goes on from its own checkpoint; leave "
                                f"--{flag} out, or start a new run")
        if config.train.seed != (seed := self.state["seed"]):
            raise UserError(f"--seed {config.train.seed}: the run has seed {seed}, which cannot change; leave --seed "
                            f"out, or start a new run")
        if config.train.steps < (done := self.plan.done(self.state)):
            raise UserError(f"--steps {config.train.steps}: the run is at step {done} already")

    def begin(self, path: Path, config: Config, about: dict[str, Any], text_hash: str) -> str:
        # Settings name a text by its path, and its content may have changed.
        if self.saved["data"] == config.data.to_dict() and self.state["text_hash"] != text_hash:
            named = ", ".join(map(str, sources(config.data.data)))
            raise UserError(f"{named} or the validation text is no longer what the run began with; "
                            f"restore it, or name the other text with --data")
        if self.state["text_hash"] != text_hash and (window := (self.state["search"] or {}).get("open")):
            raise UserError("the texts are others than when a window of challengers opened at step "
                            f"{window['opened']}: they can change once the window is over; continue with those, or "
                            "from an earlier checkpoint")
        if self.origin != path:
            self._copy_to(path)
        else:
            about["created"] = self.saved.get("created")  # None: its first event tells
            about |= {key: value for key, value in self.saved.items()
                      if key not in (*about, *SECTIONS, *self.plan.keys)}
        about |= self.plan.found(self.state["search"])
        return self._changes(about)

    def _copy_to(self, path: Path) -> None:
        try:
            for name in (*LOGS, TOKENIZER):
                if (self.origin / name).exists():
                    shutil.copyfile(self.origin / name, path / name)
            shutil.rmtree(path / PLAN, ignore_errors=True)
            if (self.origin / PLAN).exists():
                shutil.copytree(self.origin / PLAN, path / PLAN)
        except OSError as error:
            raise UserError(f"cannot copy {self.origin} to {path}: {error.strerror or error}") from error

    def _changes(self, about: Mapping[str, Any]) -> str:
        if self.state["config_hash"] == about["config_hash"]:
            return ""
        places = [(s.section, s.key, s.default) for s in SETTINGS] + [("device", key, None) for key in about["device"]]
        both = [(key, *(where.get(section, {}).get(key, default) for where in (self.saved, about)))
                for section, key, default in places]
        return ", ".join(f"{key} {was} → {now}" for key, was, now in both if was != now) or "since the checkpoint"


def tokenizer_of(found: Checkpoint) -> Tokenizer:
    """Return the tokenizer of the checkpoint's run. Raises UserError where it is not that of the checkpoint."""
    path = found.path.parent.parent / TOKENIZER
    try:
        tokenizer = Tokenizer.load(path)
    except UserError as error:
        raise UserError(f"{str(error).removesuffix('; train a new one')}; the weights need this very vocabulary: put "
                        f"the file back, which a new run with the same --data, --vocab-size and --seed writes, too"
                        ) from error
    if tokenizer.fingerprint != found.state["tokenizer"]:
        raise UserError(f"{path} is not the vocabulary that {found.path} was trained with; restore the run's own")
    return tokenizer


def _tokens_read(found: Checkpoint, saved: Mapping[str, Any]) -> int | None:
    """Return how many tokens the weights of a checkpoint were trained on, those of its run's own parent included; None
    where its records do not tell, as after a search. saved: its run's config.json."""
    run, kept = found.path.parent.parent, found.state["search"] or {}
    before = saved["init"]["tokens"] if "init" in saved else 0
    log = _read_by_step(run)
    over = kept.get("over", len(kept.get("windows", ())))  # which older checkpoints keep themselves
    for window in rows(run / REPLACED["windows"])[:over]:
        if window["winner"]:  # a challenger, whose own steps its weights have read
            theirs = _read_by_step(run / PLAN / f"w{window['window']}" / f"{window['winner']}.r0")
            log = {step: n for step, n in log.items() if not window["opened"] < step <= window["closed"]} | theirs
    counts = [n for step, n in log.items() if step <= found.state["step"]]
    if before is None or kind_of(found.state) == SEARCH or len(counts) < found.state["step"] or not all(counts):
        return None
    return int(before) + sum(counts)


def _read_by_step(run: Path) -> dict[int, int]:
    """Return how many tokens each step of a run read, 0 where its row does not tell."""
    return {row["step"]: round((row["tokens_per_sec"] or 0) * (row["ms_per_iter"] or 0) / 1000)
            for _, row in lines(run / METRICS)}


def is_chat(found: Checkpoint) -> bool:
    """Return whether the checkpoint's run trains on conversations, as all runs did that do not say."""
    return bool(layout.read_config(found.path.parent.parent).get("chat", True))
