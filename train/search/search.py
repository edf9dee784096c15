"""The search of a run: which candidate is trained next, with which seed, and what came of those before."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from helios.errors import UserError
from helios.files import write_atomic
from helios.model import GPTConfig
from helios.train import checkpoint, leg
from helios.train.config import Config, SearchConfig, model_dict
from helios.train.learner import Learner
from helios.train.leg import Leg
from helios.train.monitors import fitness
from helios.train.monitors.controls import bound
from helios.train.monitors.weights import weight_metrics
from helios.train.progress import Display
from helios.train.schedule import learning_rate
from helios.train.search import ranking, report
from helios.train.search.evolution import (
    Candidate,
    Replicate,
    first_generation,
    genome_key,
    next_generation,
    trainings,
)
from helios.train.search.report import CANDIDATES, SUMMARY, table

MOST_CANDIDATES = 10_000
APART = 1_000_003  # between the seeds of candidates that share nothing


def candidate_model(model: GPTConfig, search: SearchConfig, activation: str) -> GPTConfig:
    width = "matched" if search.match == "params" else model.ffn_dim
    return replace(model, activation=activation, ffn_dim=width)


def budget(config: Config) -> tuple[int, int]:
    """(steps, tokens) of one training at most; where it is counted in seconds, those of max_cost."""
    s, t = config.search, config.train
    step = t.batch_size * t.accum * config.model.block_size
    if s.budget == "steps":
        return s.steps_per_candidate, s.steps_per_candidate * step
    tokens = s.tokens_per_candidate if s.budget == "tokens" else s.max_cost
    # An adaptive batch makes steps of any size, down to one sequence.
    least = config.model.block_size if config.monitor.adaptive_batch else step
    return math.ceil(tokens / least), math.ceil(tokens)


def check_cost(config: Config) -> None:
    """Raises UserError where the search may take more than max_cost tokens."""
    s = config.search
    n, (steps, tokens) = trainings(s, config.model.n_layer), budget(config)
    if s.budget == "seconds" and n > s.replicates * MOST_CANDIDATES:
        raise UserError(f"the search may take {n:,} trainings of {s.seconds_per_candidate:g} seconds; lower "
                        f"population_size, generations or replicates")
    if s.budget != "seconds" and n * tokens > s.max_cost:
        raise UserError(f"the search may take {n:,} trainings of {steps:,} steps, {n * tokens:.3g} tokens in all, more "
                        f"than --max-cost {s.max_cost:.3g}; lower population_size, generations, replicates or "
                        f"{s.budget}_per_candidate, or raise --max-cost")


def plan(config: Config) -> str:
    """What the search may take, in words."""
    s, n, (steps, tokens) = config.search, trainings(config.search, config.model.n_layer), budget(config)
    each = f"{s.seconds_per_candidate:g} seconds" if s.budget == "seconds" else f"{steps:,} steps, {tokens:,} tokens"
    return f"search: at most {n:,} trainings of {each} each{', equal ones once' if s.reuses else ''}"


class Progress:
    """What the training under way has come to; kept in checkpoints."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        self.steps = self.tokens = self.spikes = self.skipped = self.clipped = self.alerts = 0
        self.seconds = self.max_grad_norm = 0.0
        self.losses: list[float | None] = []  # None: not finite
        self.evaluations: list[list[float | None]] = []  # [step, loss]
        self.timed = 0  # tokens of the steps that `seconds` counts
        self.over: str | None = None  # why it ended
        vars(self).update(state or {})

    def replicate(self, seed: int, learner: Learner, config: Config) -> Replicate:
        values = [v for _, v in self.evaluations if v is not None]
        tail = self.losses[-max(1, len(self.losses) // 10):]
        train_loss = math.nan if None in tail else math.fsum(x for x in tail if x is not None) / len(tail)
        speed = self.timed / self.seconds if self.seconds else math.nan
        share = lambda n: n / max(1, self.steps)
        name, energy = config.search.fitness, None
        if "free_energy" in fitness.FITNESS[name].needs:
            entropy = weight_metrics(learner.weights())["weight_entropy"]
            energy = fitness.free_energy(train_loss, entropy, config.monitor.free_energy_beta)
        measured = fitness.Measurements(
            best_val_loss=min(values, default=math.nan), tokens_per_sec=speed, clip_rate=share(self.clipped),
            max_grad_norm=self.max_grad_norm, parameters=learner.model.num_parameters(), free_energy=energy,
            instability=share(self.spikes) + share(self.skipped) + share(self.alerts))
        return Replicate(
            seed=seed, val_loss=self.evaluations[-1][1] if self.evaluations else None,
            best_val_loss=measured.best_val_loss, train_loss=train_loss,
            fitness=fitness.fitness(name, measured, config.search.coefficients), steps=self.steps,
            tokens=self.tokens, evaluations=[list(e) for e in self.evaluations], spikes=self.spikes,
            skipped=self.skipped, clip_rate=share(self.clipped), max_grad_norm=self.max_grad_norm,
            tokens_per_sec_mean=speed, cusum_alerts=self.alerts, seconds=self.seconds)


class Search:
    """Generations of candidates, each trained with several seeds; then the leg that trains the winner.

    All that it has decided is in `state`; nothing else but the settings decides what comes next.
    """

    def __init__(self, config: Config, run: Path, device: str, display: Display) -> None:
        self.config, self.cfg, self.device, self.display = config, config.search, device, display
        self.folder = run / "search"
        self.spent = 0  # steps of the trainings that are over
        self.candidates = first_generation(self.cfg, config.model.n_layer, config.train.seed)
        self.at: int | None = 0  # the candidate under way; None: the search is over
        self.replicates: list[Replicate] = []  # its trainings that are over
        self.progress = Progress()  # the one under way
        # Checkpoints of the first training of the best candidate, and of the one under way, where they may be needed.
        self.start: str | None = None
        self.pending: str | None = None

    def state(self) -> dict[str, Any]:
        return {"spent": self.spent, "at": self.at, "start": self.start, "pending": self.pending,
                "progress": vars(self.progress),
                "candidates": [c.to_json() for c in self.candidates],
                "replicates": [r.to_json() for r in self.replicates]}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.spent, self.at, self.start, self.pending = (state[k] for k in ("spent", "at", "start", "pending"))
        self.progress = Progress(state["progress"])
        self.candidates = [Candidate.from_json(c) for c in state["candidates"]]
        self.replicates = [Replicate.from_json(r) for r in state["replicates"]]
        self.write()

    # -- which training is next ---------------------------------------------------------------------------------------
    def leg(self) -> Leg:
        if self.at is None:
            return self._after()
        c, r, s, seed = self.candidates[self.at], len(self.replicates), self.cfg, self.seed
        apart = 0 if (s.shared_init and s.shared_batches) else APART * (self.at + 1)
        steps, _ = budget(self.config)
        population = [x.activation for x in self.candidates if x.generation == c.generation]
        columns: dict[str, Any] = {
            "symbio_phase": "search", "symbio_candidate_id": c.id, "symbio_candidate_name": c.name,
            "symbio_candidate_activation": c.activation, "symbio_candidate_parent_id": c.parent_id,
            "symbio_candidate_parent_name": c.parent_name, "symbio_generation": c.generation,
            "symbio_mutation_applied": c.mutation, "symbio_replicate": r}
        if self.config.monitor.track_population_metrics:
            columns |= {"population_entropy": fitness.population_entropy(population),
                        "architecture_diversity": fitness.architecture_diversity(population),
                        "activation_distribution": fitness.activation_distribution(population)}
        named = "mixed" if "," in c.activation else c.activation
        label = f"gen {c.generation} {c.name} ({named}) seed {r + 1}/{s.replicates}"
        return Leg(model=candidate_model(self.config.model, s, c.activation), final=False, label=label,
                   init_seed=seed + (0 if s.shared_init else apart),
                   data_seed=seed + (0 if s.shared_batches else apart), first=self.spent, steps=steps,
                   rate=self._rate(steps), eval_interval=s.candidate_eval_interval, columns=columns)

    @property
    def seed(self) -> int:
        return self.config.train.seed + len(self.replicates)

    def _rate(self, steps: int) -> Any:
        t, s = self.config.train, self.cfg
        if s.candidate_schedule == "run":
            return self._of_run(self.spent)
        return partial(_constant, lr=s.candidate_lr or t.lr, lr_min=t.lr_min, warmup=self._warmup(steps))

    def _warmup(self, steps: int) -> int:
        if self.cfg.candidate_warmup is not None:
            return self.cfg.candidate_warmup
        return min(self.config.train.warmup, steps // 2)

    def _of_run(self, first: int) -> Any:
        """The schedule of a run as long as search and training together, from its step `first` on."""
        t = self.config.train
        in_all = trainings(self.cfg, self.config.model.n_layer) * budget(self.config)[0] + t.steps
        return lambda step: learning_rate(first + step, steps=in_all, warmup=t.warmup, lr=t.lr, lr_min=t.lr_min)

    def _after(self) -> Leg:
        found = self.summary()
        winner = next(c for c in self.candidates if c.id == found["winner"])
        after = replace(leg.training(self.config, self.spent), columns={"symbio_phase": "after"},
                        model=candidate_model(self.config.model, self.cfg, winner.activation))
        if self.cfg.after_schedule == "run":
            after = replace(after, rate=self._of_run(self.spent))
        if self.start is not None:
            after = replace(after, start=self.folder / "checkpoints" / self.start,
                            offset=winner.replicates[0].steps * self.config.train.accum)
        return after

    # -- what comes of it ---------------------------------------------------------------------------------------------
    @property
    def over(self) -> bool:
        """Whether the training under way is."""
        return self.progress.over is not None

    def step(self, row: Mapping[str, Any], timed: bool) -> None:
        """Count a step; it may end the training. timed: whether its time is that of a step."""
        p, s = self.progress, self.cfg
        p.steps += 1
        tokens = round(row["tokens_per_sec"] * row["ms_per_iter"] / 1000)
        p.tokens += tokens
        if timed:
            p.seconds += row["ms_per_iter"] / 1000
            p.timed += tokens
        p.losses.append(row["loss"] if math.isfinite(row["loss"]) else None)
        p.spikes += row.get("skip_reason") == "spike"
        p.skipped += bool(row.get("skipped"))
        p.clipped += row["clip_coef"] < 1
        if math.isfinite(row["grad_norm"]):
            p.max_grad_norm = max(p.max_grad_norm, row["grad_norm"])
        steps, limit = budget(self.config)
        if (p.steps >= steps or (s.budget != "steps" and p.tokens >= limit)
                or (s.budget == "seconds" and p.seconds >= s.seconds_per_candidate)):
            p.over = "budget"
        if s.budget == "seconds" and p.tokens + self._tokens() > s.max_cost:
            raise UserError(f"the search has come to --max-cost {s.max_cost:.3g}; continue it with --resume and a "
                            f"higher one, or start one with a lower seconds_per_candidate")

    def _tokens(self) -> int:
        """Of the trainings that are over."""
        measured = (r for c in self.candidates if c.status != "reused" for r in c.replicates)
        return sum(r.tokens for r in (*measured, *self.replicates))

    def observe(self, row: Mapping[str, Any]) -> None:
        """The monitors' columns and the validation loss, where there is one."""
        p = self.progress
        p.alerts += bool(row.get("cusum_alerts"))
        if row["val_loss"] is None:
            return
        p.evaluations.append([p.steps, row["val_loss"] if math.isfinite(row["val_loss"]) else None])
        if self.cfg.early_stop and not self.over and self._hopeless():
            p.over = "stopped"

    def _hopeless(self) -> bool:
        """Whether the mean over seeds will be above the best one even if the rest goes as well as it can."""
        best = min((c.val_loss_mean for c in self.candidates if c.status == "complete"
                    and c.val_loss_mean is not None), default=math.inf)
        steps, _ = budget(self.config)
        warm = self._warmup(steps)
        values = [(int(s or 0), v) for s, v in self.progress.evaluations if v is not None and (s or 0) >= warm]
        at_best = math.fsum(r.val_loss or 0.0 for r in self.replicates) + bound(values, steps)
        return at_best / self.cfg.replicates > best  # seeds still to come count as a loss of zero

    @property
    def keeps(self) -> bool:
        """Whether the weights of the training that is over may be needed again."""
        return self.cfg.after == "continue" and not self.replicates

    def finish(self, learner: Learner, kept: Path | None) -> None:
        """Take the result of the training that is over, its weights `kept` in a checkpoint, and choose the next."""
        assert self.at is not None
        c = replace(self.candidates[self.at], parameters=learner.model.num_parameters())
        self.replicates.append(self.progress.replicate(self.seed, learner, self.config))
        self.spent += self.progress.steps
        stopped, self.progress = self.progress.over == "stopped", Progress()
        if kept is not None:
            self.pending = kept.name
        if len(self.replicates) == self.cfg.replicates or stopped or self.replicates[-1].val_loss is None:
            c = self.candidates[self.at] = ranking.aggregate(c, self.replicates, "stopped" if stopped else "complete")
            self.replicates = []
            if self.cfg.after == "continue":
                self._keep_best(c)
            self.display.say(_line(c))
            self._next()
        self.write()
        if self.at is None:
            report.write(self.folder.parent)

    def _keep_best(self, c: Candidate) -> None:
        if ranking.rank(self.candidates, self.cfg)[0].id == c.id:
            self.start = self.pending
        for path in checkpoint.steps(self.folder):
            if path.name != self.start:
                shutil.rmtree(path, ignore_errors=True)

    def _next(self) -> None:
        """Go to the next candidate that must be trained, of this generation or of a new one."""
        while True:
            for i, c in enumerate(self.candidates):
                if c.status is None and not self._reused(i):
                    self.at = i
                    return
            self.display.show(table(self.candidates, self.summary()))
            generation = self.candidates[-1].generation + 1
            if self.cfg.selection == "exhaustive" or generation >= self.cfg.generations:
                break
            self.candidates += next_generation(self.cfg, self.config.model.n_layer, self.candidates, generation,
                                               self.config.train.seed)
        self.at = None
        if self.summary()["winner"] is None:
            self.write()
            reasons = " ".join(self.summary()["reasons"])
            raise UserError(f"the search has no winner: {reasons} See {self.folder / SUMMARY}")

    def _reused(self, i: int) -> bool:
        """Give candidate `i` the results of an earlier one that trained the same, if there is one."""
        c = self.candidates[i]
        if not self.cfg.reuses:
            return False
        for earlier in self.candidates[:i]:
            if earlier.status is not None and genome_key(earlier) == genome_key(c):
                self.candidates[i] = ranking.reused(c, earlier)
                return True
        return False

    # -- what is written of it ----------------------------------------------------------------------------------------
    def summary(self) -> dict[str, Any]:
        found = ranking.summary(self.cfg, self.candidates, model_dict(self.config.model), self.device,
                                "running" if self.at is not None else "complete")
        m = self.config.monitor
        if self.cfg.early_stop:
            found["unfair"].append("early_stop is on: candidates that fell behind trained for fewer steps.")
        for key, acts, what in (("adaptive_batch", m.adaptive_batch, "batch"),
                                ("dynamic_lr", m.dynamic_lr != "none", "learning rate")):
            if acts:
                found["unfair"].append(f"{key} is on: alerts changed each candidate's {what}, not all alike.")
        return found

    def write(self) -> None:
        """candidates.jsonl and summary.json. Raises UserError."""
        lines = "".join(json.dumps(c.to_json(), ensure_ascii=False, allow_nan=False) + "\n" for c in self.candidates)
        summary = json.dumps(self.summary(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            self.folder.mkdir(exist_ok=True)
            write_atomic(self.folder / CANDIDATES, lambda file: file.write(lines.encode()))
            write_atomic(self.folder / SUMMARY, lambda file: file.write(summary.encode()))
        except OSError as error:
            raise UserError(f"cannot write to {self.folder}: {error.strerror}; "
                            f"free space and continue with --resume {self.folder.parent}") from error


def models(config: Config) -> list[GPTConfig]:
    """Every kind of model that the run may train."""
    if not config.search:
        return [config.model]
    genomes = [*config.search.pool, *filter(None, config.search.genomes.split(";"))]
    return [candidate_model(config.model, config.search, genome) for genome in genomes]


def winner(state: Mapping[str, Any] | None, config: Config) -> str | None:
    """The activation that the search of a checkpoint's state has chosen, if it is over."""
    if not state or state["at"] is not None:
        return None
    candidates = [Candidate.from_json(c) for c in state["candidates"]]
    return ranking.rank(candidates, config.search)[0].activation


def _constant(step: int, *, lr: float, lr_min: float, warmup: int) -> float:
    """Linear from lr_min to lr over `warmup` steps, then lr."""
    return lr if step >= warmup else lr_min + (lr - lr_min) * (step + 1) / warmup


def _line(c: Candidate) -> str:
    loss = "not finite" if c.val_loss_mean is None else f"{c.val_loss_mean:.4f}"
    error = "" if c.val_loss_se is None else f" ± {c.val_loss_se:.4f}"
    speed = "" if c.tokens_per_sec_mean is None else f", {c.tokens_per_sec_mean:,.0f} tok/s"
    return f"{c.id} {c.name}: {c.status}, val {loss}{error}{speed}"
