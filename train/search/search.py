"""The search of a run, as a plan: which candidate is trained next, with which seed, and the results so far."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from helios.errors import UserError
from helios.files import write_atomic
from helios.model import GPTConfig
from helios.model.activations import kind
from helios.train import checkpoint, fitness
from helios.train.checkpoint import Checkpoint, State
from helios.train.config import SETTINGS, Config
from helios.train.monitors.controls import bound
from helios.train.monitors.weights import weight_metrics
from helios.train.progress import Display
from helios.train.records.layout import way_on
from helios.train.records.records import Records
from helios.train.schedule import learning_rate, warmed_up
from helios.train.search import ranking, report
from helios.train.search.births import Candidate, Replicate, genome_key
from helios.train.search.budget import budget, candidate_model, check_cost, cost_in_words, models
from helios.train.search.evolution import first_generation, next_generation, trainings
from helios.train.search.files import CANDIDATES, FOLDER, SUMMARY
from helios.train.search.operators import described, steadying
from helios.train.search.tally import Tally
from helios.train.stage import SEARCH, SEED_STRIDE, Plan, Stage, training
from helios.train.state import TrainState


class Search(Plan):
    """A plan of generations of candidates, each trained with several seeds, and of the training of the winner.

        Run.create(config, path, plan=Search).train()
    """

    keys = ("symbio_winner", "symbio_winner_settings")
    continues = (SEARCH,)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.cfg = config.search

    # -- before the run begins ----------------------------------------------------------------------------------------
    def check(self) -> None:
        if not self.cfg:
            raise UserError("a plan of a search was given for settings without one; set mode = ffn-activation")
        check_cost(self.config)

    def models(self) -> list[GPTConfig]:
        return models(self.config)

    def cost(self) -> str:
        return cost_in_words(self.config)

    def check_resumed(self, found: Checkpoint, saved: Mapping[str, Any]) -> None:
        now, over, operators = self.config.to_dict(), not checkpoint.searching(found.state), self._by_operators
        free = {"steps", "max_cost"} | {s.key for s in SETTINGS if not s.bits}
        # Candidates of operators hold what is not as the run's model has it.
        for section in (*(("search",) if over else ("train", "data", "search", "monitor")), *("model",) * operators):
            for key, value in now[section].items():
                was = saved.get(section, {}).get(key)
                if key not in free and was != value:
                    when = "in a run with a search" if over else "before the search is over"
                    raise UserError(f"{key} was {was!r} when the search began, and is {value!r}: it cannot change "
                                    f"{when}; start a new run")
        # The checkpoint's model is that of the candidate under way.
        varied = {"activation", "ffn_dim", *(steadying(self.config.model, ()).own if operators else ())}
        own = {key: value for key, value in found.state["model"].items() if key in varied}
        checkpoint.check_model(found, now["model"] | own)

    @property
    def _by_operators(self) -> bool:
        return self.cfg.genome == "operators"

    def done(self, state: State) -> int:
        assert state["search"] is not None
        return 0 if checkpoint.searching(state) else state["step"] - state["search"]["spent"]

    def found(self, state: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return what config.json says of the winner of the search, nothing before it is over. Settings are those of
        the model that are not as the run has them."""
        if not state or state["at"] is not None:
            return {}
        won = ranking.rank(msgspec.convert(state["candidates"], list[Candidate]), self.cfg)[0]
        values = won.activation, won.settings
        return {key: value for key, value in zip(self.keys, values, strict=True) if value}

    def begin(self, records: Records, device: str, display: Display, state: Mapping[str, Any] | None) -> None:
        self.records, self.device, self.display = records, device, display
        self.folder = records.path / FOLDER
        self.spent = 0  # steps of the trainings that are over
        self.candidates = first_generation(self.cfg, self.config.model, self.config.train.seed)
        self.at: int | None = 0  # index of the candidate under way; None: the search is over
        self.replicates: list[Replicate] = []  # its finished trainings
        self.tally = Tally()  # of its training under way
        # For after = continue: checkpoints of the first trainings of the best candidate, and of the one under way.
        self.start: str | None = None
        self.pending: str | None = None
        if state is not None:
            self.spent, self.at, self.start, self.pending = (state[k] for k in ("spent", "at", "start", "pending"))
            self.tally = Tally(state["progress"])
            self.candidates = msgspec.convert(state["candidates"], list[Candidate])
            self.replicates = msgspec.convert(state["replicates"], list[Replicate])
        self.write()

    def state(self) -> dict[str, Any]:
        return {"spent": self.spent, "at": self.at, "start": self.start, "pending": self.pending,
                "progress": vars(self.tally),
                "candidates": [c.to_json() for c in self.candidates],
                "replicates": [r.to_json() for r in self.replicates]}

    # -- which training is next ---------------------------------------------------------------------------------------
    def stage(self) -> Stage | None:
        if self.at is None:
            return None if self.cfg.after == "none" else self._after()
        c, r, s, seed = self.candidates[self.at], len(self.replicates), self.cfg, self.seed
        apart = 0 if (s.shared_init and s.shared_batches) else SEED_STRIDE * (self.at + 1)
        steps, _ = budget(self.config)
        population = [x for x in self.candidates if x.generation == c.generation]
        genomes, activations = [*map(genome_key, population)], [x.activation for x in population]
        columns: dict[str, Any] = {
            "symbio_phase": "search", "symbio_candidate_id": c.id, "symbio_candidate_name": c.name,
            "symbio_candidate_activation": c.activation, "symbio_candidate_parent_id": c.parent_id,
            "symbio_candidate_parent_name": c.parent_name, "symbio_generation": c.generation,
            "symbio_mutation_applied": c.mutation, "symbio_replicate": r}
        if self.config.monitor.track_population_metrics:
            columns |= {"population_entropy": fitness.population_entropy(genomes),
                        "architecture_diversity": fitness.architecture_diversity(genomes),
                        "activation_distribution": fitness.activation_distribution(activations)}
        label = f"gen {c.generation} {c.name} ({c.named(kind(c.activation))}) seed {r + 1}/{s.replicates}"
        return Stage(model=candidate_model(self.config.model, s, c), final=False, label=label,
                   init_seed=seed + (0 if s.shared_init else apart),
                   data_seed=seed + (0 if s.shared_batches else apart), first=self.spent, steps=steps,
                   rate=self._rate(steps), eval_interval=s.candidate_eval_interval, columns=columns)

    @property
    def seed(self) -> int:
        """Return the seed of the training under way."""
        return self.config.train.seed + len(self.replicates)

    def _rate(self, steps: int) -> Callable[[int], float]:
        t, s = self.config.train, self.cfg
        if s.candidate_schedule == "run":
            return self._of_run(self.spent)
        return partial(warmed_up, lr=s.candidate_lr or t.lr, lr_min=t.lr_min, warmup=self._warmup(steps))

    def _warmup(self, steps: int) -> int:
        if self.cfg.candidate_warmup is not None:
            return self.cfg.candidate_warmup
        return min(self.config.train.warmup, steps // 2)

    def _of_run(self, first: int) -> Callable[[int], float]:
        """Return the schedule of a run as long as search and training together, from its step `first` on."""
        t = self.config.train
        in_all = trainings(self.cfg, self.config.model.n_layer) * budget(self.config)[0] + t.steps
        return lambda step: learning_rate(first + step, steps=in_all, warmup=t.warmup, lr=t.lr, lr_min=t.lr_min)

    def _after(self) -> Stage:
        found = self.summary()
        winner = next(c for c in self.candidates if c.id == found["winner"])
        after = replace(training(self.config, self.spent), columns={"symbio_phase": "after"},
                        model=candidate_model(self.config.model, self.cfg, winner))
        if self.cfg.after_schedule == "run":
            after = replace(after, rate=self._of_run(self.spent))
        if self.start is not None:
            after = replace(after, start=self.folder / "checkpoints" / self.start,
                            offset=winner.replicates[0].steps * self.config.train.accum)
        return after

    # -- what comes of it ---------------------------------------------------------------------------------------------
    @property
    def over(self) -> str:
        return self.tally.over or ""

    def step(self, row: Mapping[str, Any], tokens: int, timed: bool) -> None:
        if self.at is None:
            return
        tally, s = self.tally, self.cfg
        tally.step(row, tokens, timed)
        steps, limit = budget(self.config)
        if (tally.steps >= steps or (s.budget != "steps" and tally.tokens >= limit)
                or (s.budget == "seconds" and tally.seconds >= s.seconds_per_candidate)):
            tally.over = "budget"
        if s.budget == "seconds" and tally.tokens + self._tokens() > s.max_cost:
            raise UserError(f"the search has come to --max-cost {s.max_cost:.3g}; continue it with --resume and a "
                            f"higher one, or start one with a lower seconds_per_candidate")

    def _tokens(self) -> int:
        """Return how many tokens the finished trainings read."""
        measured = (r for c in self.candidates if c.status != "reused" for r in c.replicates)
        return sum(r.tokens for r in (*measured, *self.replicates))

    def observe(self, row: Mapping[str, Any]) -> None:
        if self.at is None:
            return
        self.tally.observe(row)
        if row["val_loss"] is not None and self.cfg.early_stop and not self.over and self._hopeless():
            self.tally.over = "stopped"

    def _hopeless(self) -> bool:
        """Return whether the candidate's mean loss must end above the best one, however well the rest goes."""
        best = min((c.val_loss_mean for c in self.candidates if c.status == "complete"
                    and c.val_loss_mean is not None), default=math.inf)
        steps, _ = budget(self.config)
        warm = self._warmup(steps)
        values = [(step, loss) for step, loss in self.tally.evaluations if loss is not None and step >= warm]
        at_best = math.fsum(r.val_loss or 0.0 for r in self.replicates) + bound(values, steps)
        return at_best / self.cfg.replicates > best  # seeds still to come are taken to reach a loss of zero

    def finish(self, state: TrainState, save: Callable[[Path], Path]) -> None:
        assert self.at is not None
        if self.cfg.after == "continue" and not self.replicates:  # whose weights may be continued
            self.pending = save(self.folder).name
        parameters, entropy = state.model.num_parameters(), lambda: weight_metrics(state.weights())["weight_entropy"]
        c = replace(self.candidates[self.at], parameters=parameters)
        self.replicates.append(self.tally.replicate(self.seed, parameters, self.config, entropy))
        self.spent += self.tally.steps
        stopped, self.tally = self.tally.over == "stopped", Tally()
        if len(self.replicates) == self.cfg.replicates or stopped or self.replicates[-1].val_loss is None:
            c = self.candidates[self.at] = ranking.aggregate(c, self.replicates, "stopped" if stopped else "complete")
            self.replicates = []
            if ranking.rank(self.candidates, self.cfg)[0].id == c.id:
                self.start = self.pending
            self.pending = None
            self.display.say(_line(c))
            self._next()
        self.write()
        if self.at is None:
            self._end()

    def _end(self) -> None:
        found, run, step = self.summary(), self.records.path, self.spent
        self.records.config(**self.found(self.state()))
        self.records.event(step, "search_complete", " ".join(found["reasons"]), winner=found["winner"])
        self.display.say("\n".join(found["reasons"]))
        try:
            report.write(run)
        except Exception as error:  # a failing plot is no reason not to train the winner
            message = f"no report: {type(error).__name__}: {error}; helios-search report {run} makes it"
            self.records.event(step, "report_failed", message)
            self.display.warn(f"warning: {message}")

    def saved(self) -> None:
        """Remove checkpoints of candidates that neither this search nor a checkpoint of the run refers to."""
        states = [self.state(), *(found["search"] for found in checkpoint.states(self.records.path))]
        named = {state[key] for state in states if state for key in ("start", "pending")}
        for path in checkpoint.directories(self.folder):
            if path.name not in named:
                checkpoint.remove(path)

    def outcome(self) -> str:
        if self.at is not None:
            return ""
        found = self.summary()
        won = described(found["winner_activation"] or "", found["winner_settings"])
        return f"search of {len(self.candidates)} candidates, winner {found['winner_name']} ({won})"

    def _next(self) -> None:
        """Go to the next candidate to train, of this generation or a new one, or end the search."""
        while True:
            for i, c in enumerate(self.candidates):
                if c.status is None and not self._reused(i):
                    self.at = i
                    return
            self.display.show(report.table(self.candidates, self.summary()))
            generation = self.candidates[-1].generation + 1
            if self.cfg.selection == "exhaustive" or generation >= self.cfg.generations:
                break
            self.candidates += next_generation(self.cfg, self.config.model, self.candidates, generation,
                                               self.config.train.seed)
        self.at = None
        if self.summary()["winner"] is None:
            self.write()
            reasons = " ".join(self.summary()["reasons"])
            raise UserError(f"the search has no winner: {reasons} See {self.folder / SUMMARY}")

    def _reused(self, i: int) -> bool:
        """Give candidate `i` the results of an earlier equal one, if there is one; return whether there is."""
        c = self.candidates[i]
        if not self.cfg.reuses:
            return False
        for earlier in self.candidates[:i]:
            if earlier.status is not None and genome_key(earlier) == genome_key(c):
                self.candidates[i] = ranking.reused(c, earlier)
                return True
        return False

    # -- what is written of it ----------------------------------------------------------------------------------------
    def summary(self) -> ranking.Summary:
        """Return the result so far."""
        found = ranking.summary(self.cfg, self.candidates, self.config.model.to_dict(), self.device,
                                "running" if self.at is not None else "complete")
        m = self.config.monitor
        if self.cfg.early_stop:
            found["unfair"].append("early_stop is on: candidates that fell behind trained for fewer steps.")
        for key, acts, what in (("adaptive_batch", m.adaptive_batch, "batch"),
                                ("dynamic_lr", m.dynamic_lr != "none", "learning rate"),
                                ("actions", bool(m.actions), "training")):
            if acts:
                found["unfair"].append(f"{key} is on: alerts changed each candidate's {what}, not all alike.")
        return found

    def write(self) -> None:
        """Write candidates.jsonl and summary.json. Raises UserError where they cannot be written."""
        lines = "".join(json.dumps(c.to_json(), ensure_ascii=False, allow_nan=False) + "\n" for c in self.candidates)
        summary = json.dumps(self.summary(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            self.folder.mkdir(exist_ok=True)
            write_atomic(self.folder / CANDIDATES, lambda file: file.write(lines.encode()))
            write_atomic(self.folder / SUMMARY, lambda file: file.write(summary.encode()))
        except OSError as error:
            raise UserError(f"cannot write to {self.folder}: {error.strerror}; "
                            f"{way_on(self.folder.parent)}") from error


def _line(c: Candidate) -> str:
    loss = "not finite" if c.val_loss_mean is None else f"{c.val_loss_mean:.4f}"
    error = "" if c.val_loss_se is None else f" ± {c.val_loss_se:.4f}"
    speed = "" if c.tokens_per_sec_mean is None else f", {c.tokens_per_sec_mean:,.0f} tok/s"
    return f"{c.id} {c.name}: {c.status}, val {loss}{error}{speed}"
