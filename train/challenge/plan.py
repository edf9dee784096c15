"""The plan of a run with challengers: its training goes on as ever, and now and then others are trained beside it.

A window opens after a step: a checkpoint is written, and challengers are drawn. The run trains on. Where the window
closes there is another checkpoint; then the challengers train from the first one as many steps as the run did, on its
batches, and so do further replicates of it and of them on batches of their own. One that is separated replaces the
run's model from that step on.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from helios.errors import UserError
from helios.model import GPTConfig
from helios.train import checkpoint
from helios.train.challenge import journal
from helios.train.challenge.space import born, branched, configured_as, largest, own, shared, space, window_config
from helios.train.challenge.standing import Standing, after, standing
from helios.train.challenge.training import keep_start, stage_of, start_in, started, train
from helios.train.challenge.window import FREE, KEPT, SWITCH, Training, Window, comparable, line, sentence
from helios.train.checkpoint import Checkpoint
from helios.train.config import Config
from helios.train.data import Dataset
from helios.train.evolve.terms import count
from helios.train.monitors.cusum import CHANNELS
from helios.train.monitors.monitors import PARTS
from helios.train.progress import Display
from helios.train.records.layout import EVENTS
from helios.train.records.records import Records
from helios.train.records.rows import rows
from helios.train.search.births import Candidate
from helios.train.search.operators import Space, described
from helios.train.stage import ALONE, CHALLENGED, Plan, Stage, training

OPENED, NONE = "challenge", "no_challenge"  # kinds of events: a window opens, or does not though it was asked for
CONTROLS = ("batch", "lr", "actions")  # parts of the monitors that hold what is in force; the others learned the model
SETTLING = 10  # a new optimizer warms up over one in so many of a window's steps


class Challenge(Plan):
    """A plan of a training that challengers may take over.

        Run.create(config, path, plan=Challenge).train()
    """

    continues = (ALONE, CHALLENGED)
    branches = True
    keys = ("champion",)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.cfg = config.challenge
        self.now = Standing(own(config))
        self.held: dict[int, Mapping[str, Any]] = {}  # lines of windows of which checkpoints may be left, by number
        self.needed: dict[int, list[str]] = {}  # folders in them to which that was reduced
        self.origin: Path | None = None  # the run that this one goes on from, where a window is open

    # -- before the run begins ----------------------------------------------------------------------------------------
    def check(self) -> None:
        if not self.config.challenged:
            raise UserError("a plan of challengers was given for settings without any; set mode = continuous")
        c, steps = self.cfg, self.config.train.steps
        by_step = self.config.search.continuous and not c.challenge_on
        first = c.interval if by_step else 1
        if first + c.challenge_steps >= steps:
            raise UserError(f"challenge_steps: a window of {count(c.challenge_steps, 'step')} that opens at step "
                            f"{first:,} does not end before the run's last, {steps:,}; lower challenge_steps"
                            f"{' or challenge_interval' * by_step}, or give more --steps")
        most, tokens = self._most()
        if most * tokens > self.config.search.max_cost:
            raise UserError(f"challengers may take {count(most, 'window')} of {tokens:,} tokens, {most * tokens:,} in "
                            f"all, more than --max-cost {self.config.search.max_cost:.3g}; raise --challenge-interval "
                            "or --max-cost, or lower challenge_steps, challengers or challenge_replicates")
        if self._draws:
            space(self.config)

    @property
    def _draws(self) -> bool:
        """Return whether challengers are drawn, or may be; else they are branches with a change of their own."""
        return self.config.search.continuous or any(
            rule.what == "branch" and rule.change is None for rule in self.config.monitor.rules)

    @cached_property
    def space(self) -> Space:
        """Return what challengers may be. Raises UserError."""
        return space(self.config)

    def _most(self) -> tuple[int, int]:
        """Return how many windows there may be, and the tokens that the trainings of one read."""
        c, t = self.cfg, self.config.train
        step = t.batch_size * t.accum * self.config.model.block_size
        tokens = self._trainings() * c.challenge_steps * step
        if c.challenge_on or self.config.monitor.branches:  # one after the other
            return max(0, -(-(t.steps - 1 - c.challenge_steps) // (c.challenge_steps + 1))), tokens
        each = c.interval * -(-(c.challenge_steps + 1) // c.interval)
        return max(0, (t.steps - 1 - c.challenge_steps - c.interval) // each + 1), tokens

    def _trainings(self) -> int:
        return ((self.cfg.challengers if self._draws else 1) + 1) * self.cfg.challenge_replicates - 1

    def cost(self) -> str:
        most, tokens = self._most()
        size = self.config.model.parameters()
        top = largest(self.config, self.space) if self._draws else size
        larger = f"; by their genes they may come to {top:,} parameters, {top / size:,.1f} times the model's"
        return (f"challengers: at most {count(most, 'window')} of {count(self._trainings(), 'training')} of "
                f"{count(self.cfg.challenge_steps, 'step')}, {most * tokens:,} tokens in all{larger * (top > size)}")

    def models(self) -> list[GPTConfig]:
        return [self.beside()]

    def beside(self) -> GPTConfig:
        # Of a larger one its own training says that memory does not suffice.
        return configured_as(self.config, self.now.champion).model

    def check_resumed(self, found: Checkpoint, saved: Mapping[str, Any]) -> None:
        state, self.origin = found.state["search"], found.path.parent.parent
        if state is not None:
            self.now = standing(state)
            if (there := len(journal.read(self.origin, self.now.over))) < self.now.over:
                raise UserError(f"{self.origin / journal.FOLDER / journal.WINDOWS} has {there:,} of the "
                                f"{self.now.over:,} windows that were over at {found.path}; put the file back, or "
                                "continue from an earlier checkpoint")
        else:  # it left its challengers, which none of them had won, or never had any
            self.now = after([*takewhile(lambda one: one["closed"] <= found.state["step"] and one["verdict"] == KEPT,
                                         journal.read(self.origin))], self.now.champion)
        checkpoint.check_model(found, configured_as(self.config, self.now.champion).model.to_dict())
        if (window := self.now.open) is None:
            return
        then = window.settings or saved  # which may have changed since, where this is not the last one
        for section, values in self.config.to_dict().items():
            for key, value in values.items():
                was = then.get(section, {}).get(key, value)
                same = shared(was) == shared(value) if key == "actions" else was == value
                if not (same or key in FREE):
                    raise UserError(f"{key} was {was!r} when a window of challengers opened at step "
                                    f"{window.opened}, and is {value!r}: it can change once the window is "
                                    f"over; continue with what it was{_earlier(self.origin, window)}")
        if start_in(self.origin / journal.FOLDER / window.name) is None and not checkpoint.path_of(
                self.origin, window.opened).is_dir():
            raise _lost(self.origin, window)

    def found(self, state: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return what config.json says of the model that the run trains by now, nothing while that is its own."""
        if not state or not (now := standing(state)).switch:
            return {}
        c = now.champion
        model = configured_as(self.config, c).model
        return {"champion": {"id": c.id, "name": c.name, "activation": c.activation, "settings": c.settings,
                             "mutation": c.mutation, "parent_id": c.parent_id, "lineage": c.lineage,
                             "parameters": model.parameters(), "since": now.switch.step}}

    def begin(self, records: Records, device: str, display: Display, state: Mapping[str, Any] | None) -> None:
        self.records, self.display = records, display  # `check_resumed` has the state
        journal.cut(records.path, self.now.over, self.now.open is not None)
        self.held = {found["window"]: found for found in journal.read(records.path)}
        # What a run has said that was killed before its next checkpoint, and decides again.
        self.told = {_said(e) for e in rows(records.path / EVENTS) if e["kind"] in (KEPT, SWITCH)}
        if self.now.open and self.origin:  # which may have been killed before it kept that
            keep_start(self.origin, self.folder / self.now.open.name, self.now.open.opened)
        self.saved()

    def state(self) -> dict[str, Any]:
        return self.now.state()

    @property
    def folder(self) -> Path:
        """Return the folder of the windows' folders and of the journal."""
        return self.records.path / journal.FOLDER

    # -- during the run -----------------------------------------------------------------------------------------------
    def stage(self) -> Stage:
        config, c = configured_as(self.config, self.now.champion), self.now.champion
        columns = {
            "symbio_candidate_id": c.id, "symbio_candidate_name": c.name, "symbio_candidate_activation": c.activation,
            "symbio_candidate_parent_id": c.parent_id, "symbio_candidate_parent_name": c.parent_name,
            "symbio_generation": c.generation, "symbio_mutation_applied": c.mutation}
        return replace(training(config), columns=columns, train=config.train)

    def opens(self, row: Mapping[str, Any]) -> None:
        step = row["step"]
        if self._may_open(step) and (reason := self._reason(row)):
            self._open(step, reason, self._born())

    def branch(self, step: int, change: str, reason: str, usual: float | None) -> None:
        number, before = self._numbers()
        found: str | list[Candidate]
        if not self._may_open(step):
            found = f"window {self.now.open.number} is open" if self.now.open else "the run ends before a window would"
        elif change:
            one = branched(self.config, self.now.champion, change, usual, number, before)
            found = one if isinstance(one, str) else [one]
        else:
            found = self._born()
        if isinstance(found, str):
            self.records.event(step, NONE, f"{reason}: no branch, since {found}", reason=reason)
        else:
            self._open(step, reason, found)

    def _may_open(self, step: int) -> bool:
        return self.now.open is None and step + self.cfg.challenge_steps < self.config.train.steps

    def _numbers(self) -> tuple[int, int]:
        """Return the number of the next window, and of the candidates so far."""
        return self.now.over + 1, self.now.candidates

    def _born(self) -> list[Candidate]:
        number, before = self._numbers()
        return born(self.config, self.space, self.now.champion, set(self.now.tried), number, before)

    def _reason(self, row: Mapping[str, Any]) -> str:
        """Return why a window is to open after the step of that row; "" where none is."""
        c, bits, alerts = self.cfg, row.get("cusum_alerts") or 0, self.cfg.alerts
        found = [f"every {c.interval:,} steps"] if c.interval and row["step"] % c.interval == 0 else []
        found += [channel.reason for channel in CHANNELS if channel.bit & bits and channel.column in alerts]
        found += [str(row["plateau"])] if c.plateau and row.get("plateau") else []
        return "; ".join(found) if self.config.search.continuous else ""

    def _open(self, step: int, reason: str, challengers: list[Candidate]) -> None:
        number, _ = self._numbers()
        if not challengers:
            self.records.event(step, NONE, f"{reason}: no challengers, since no gene has another value", reason=reason)
            return
        settings = {name: values for name, values in self.config.to_dict().items() if name != "data"}
        window = Window(number, step, self.cfg.challenge_steps, reason, challengers, settings)
        self.now = replace(self.now, open=window)
        said = ", ".join(f"{c.id} ({c.mutation})" for c in challengers)
        self.records.event(step, OPENED, f"window {number}, {reason}: to step {window.closes} {self.now.champion.id} "
                           f"beside {said}", window=number, reason=reason, challengers=[c.id for c in challengers])

    def saves(self, step: int) -> bool:
        return self.now.open is not None and step in (self.now.open.opened, self.now.open.closes)

    def saved(self) -> None:
        """Keep the checkpoint at which a window opened, and remove those of windows that are over and that no
        checkpoint of the run is in; where that is the first one alone, as that is the start, all but the winner's."""
        if self.now.open is not None:
            keep_start(self.records.path, self.folder / self.now.open.name, self.now.open.opened)
        steps = [checkpoint.step_of(path) for path in checkpoint.directories(self.records.path)]
        for number, found in list(self.held.items()):
            first, last = found["opened"], found["closed"] - (found["verdict"] == SWITCH)  # which is the winner's own
            within = steps[bisect_left(steps, first):bisect_right(steps, last)]
            needed = [f"{found['winner']}.r0"] if within else []
            if within[-1:] <= [first] and self.needed.get(number) != needed:
                if (folder := self.folder / f"w{number}").is_dir():
                    journal.remove_checkpoints(folder, needed)
                self.needed[number] = needed
            if not within:
                del self.held[number], self.needed[number]

    def due(self, step: int) -> bool:
        return self.now.open is not None and step >= self.now.open.closes

    def decide(self, dataset: Dataset, evaluate: Callable[[], float], stopped: Callable[[], bool]) -> Path | None:
        window, champion = self.now.open, self.now.champion
        assert window is not None
        found = self._judged(window, dataset, evaluate, stopped)
        said, kind, step, chosen = sentence(found, champion), found["verdict"], window.closes, None
        if kind == SWITCH:
            place = self.folder / window.name / f"{found['winner']}.r0"
            chosen = next(reversed(checkpoint.directories(place)), None)
            if chosen is None:
                raise UserError(f"{place} lacks the checkpoint of step {step}, with which the run is to go on; put it "
                                "back, or remove that folder to have it trained again")
        self.now = self.now.judged(found)
        self.held[window.number] = found
        journal.append(self.records.path, found)
        won = next((c["mutation"] for c in found["challengers"] if c["id"] == found["winner"]), None)
        event = {"window": window.number, "reason": window.reason, "winner": found["winner"], "change": won}
        if _said({"step": step, "kind": kind, **event}) not in self.told:
            self.records.event(step, kind, said, **event)
        self.display.say(said)
        if kind == SWITCH:
            self.records.config(**self.found(self.state()))
        return chosen

    def _judged(self, window: Window, dataset: Dataset, evaluate: Callable[[], float],
                stopped: Callable[[], bool]) -> dict[str, Any]:
        """Make the trainings of a window; return its line of the journal."""
        folder = self.folder / window.name
        path = start_in(folder)
        if path is None:
            raise _lost(self.records.path, window)
        start = checkpoint.load(path)
        self.display.say(f"window {window.number}: training {count(len(window.challengers), 'challenger')} from "
                         f"step {window.opened}")

        def made(c: Candidate, replicate: int, begin: Path, parts: Sequence[str], settling: int = 0
                 ) -> tuple[float | None, str | None]:
            whole = configured_as(self.config, c)
            stage = stage_of(whole, window, begin, replicate, start.state["position"], parts, settling)
            config = window_config(whole, window.closes, self.config.eval_batch)
            about = {"run_id": self.records.about["run_id"], "number": window.number, "id": c.id,
                     "replicate": replicate, "step": window.opened}
            return train(config, stage, folder / f"{c.id}.r{replicate}", about, dataset, self.display, stopped,
                         keep=replicate == 0)

        replicates = range(self.cfg.challenge_replicates)
        model = [comparable(evaluate())]
        failed = None if model[0] is not None else "its validation loss is not finite"
        for r in replicates[1:]:
            loss, failed = (None, failed) if failed else made(self.now.champion, r, path, PARTS)
            model.append(loss)
        trained = [Training([None] * len(model), False, [], "was not trained") for _ in window.challengers if failed]
        for c in window.challengers[len(trained):]:
            begin, moments, changes = started(start, configured_as(self.config, c).model, folder / f"{c.id}.start",
                                              self.config.train.seed)
            losses, why = list[float | None](), None
            for r in replicates:
                loss, why = (None, why) if why else made(
                    c, r, begin, CONTROLS, 0 if moments else max(1, window.steps // SETTLING))
                losses.append(loss)
            trained.append(Training(losses, moments, changes, why))
        return line(window, self.now.champion, model, trained, self.cfg.challenge_error, failed)

    def outcome(self) -> str:
        if not self.now.over:
            return ""
        switches = sum(found["verdict"] == SWITCH for found in journal.read(self.records.path))
        champion = self.now.champion
        now = f", now {champion.id} ({described(champion.activation, champion.settings)})" * bool(switches)
        return f"challengers won {switches:,} of {count(self.now.over, 'window')}{now}"


def _said(event: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what an event says of a window's end, by which it is known again."""
    return event.get("window"), event["step"], event["kind"], event.get("winner")


def _earlier(run: Path, window: Window) -> str:
    """Return in words that a run may go on from before a window, where it has a checkpoint there that is in none."""
    free = any(found["step"] < window.opened and not (found["search"] or {}).get("open")
               for found in checkpoint.states(run))
    return ", or from an earlier checkpoint" * free


def _lost(run: Path, window: Window) -> UserError:
    """Return what is raised where a window lacks its start."""
    return UserError(f"{run / journal.FOLDER / window.name} lacks the checkpoint of step {window.opened}, from which "
                     f"its challengers train; put it back{_earlier(run, window)}")
