"""The settings of what is watched in a run; docs/search.md explains them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from helios.model.genes import in_steps
from helios.model.settings import ANY, COUNT, NATURAL, POSITIVE, Range, Settings, one_of, setting
from helios.train.rules import PLATEAU, RULES, Action, rules


@dataclass(frozen=True)
class MonitorConfig(Settings):
    """What is watched in a run, and what may change its training."""

    cusum: bool = setting(True, ANY, "raise an alert where gradient norm, clipping, speed, validation loss, "
                          "waiting or memory shift")
    cusum_sensitivity: float = setting(12.0, POSITIVE, "sum of deviations above which there is an alert, in standard "
                                       "deviations")
    cusum_slack: float = setting(0.5, NATURAL, "part of each deviation that is not added up, in standard deviations")
    cusum_window: int = setting(50, Range("at least 2", lambda x: x >= 2), "values that make a baseline; at most 5 of "
                                "the validation loss")
    cusum_grace: int = setting(10, NATURAL, "first values of a training, which are left out of the baseline")
    metrics_interval: int = setting(200, NATURAL, "steps between looks at weights, layers and representations; 0: "
                                    "never", gene=in_steps(50, 200, 1000, 0, part="runtime"))
    track_weight_entropy: bool = setting(True, ANY, "record the entropy of the weights' histograms")
    track_effective_rank: bool = setting(True, ANY, "record the effective rank of the weights' matrices")
    track_free_energy: bool = setting(True, ANY, "record the loss plus free_energy_beta times the weights' entropy")
    track_layer_grads: bool = setting(True, ANY, "record the gradient norm of each layer")
    track_mi_profiles: bool = setting(False, ANY, "record mutual information of input, representation and output")
    track_population_metrics: bool = setting(True, ANY, "record entropy and diversity of a search's generation")
    free_energy_beta: float = setting(0.01, NATURAL, "weight of the entropy in the free energy, in nats a bit")
    complexity: str = setting("parameters", one_of("parameters", "entropy", "description"), "what complexity_score is: "
                              "log₁₀ of the number of parameters, entropy of a weight in bits, log₁₀ of the bits of "
                              "all")
    plateau_evals: int = setting(5, NATURAL, "evaluations without a better one that make a plateau; 0: never")
    plateau_delta: float = setting(0.005, NATURAL, "nats by which a validation loss must be lower to be better")
    adaptive_batch: bool = setting(False, ANY, "let alerts change the batch size")
    batch_min: int = setting(1, COUNT, "smallest batch that alerts may choose, in sequences")
    batch_max: int = setting(64, COUNT, "largest batch that alerts may choose, in sequences")
    batch_step: int = setting(4, COUNT, "sequences by which adaptive_batch changes the batch")
    calm_steps_before_restore: int = setting(200, COUNT, "steps without an alert after which one change is undone")
    dynamic_lr: str = setting("none", one_of("none", "cusum", "entropy"), "what may change the learning rate: alerts, "
                              "or the entropy of a search's population")

    actions: str = setting("", ANY, "what alerts do, as 'cusum_grad: lr*0.5 for 200; plateau: stop'; docs/control.md",
                           kind=RULES)

    @property
    def rules(self) -> tuple[Action, ...]:
        """Return what `actions` says, in its order."""
        return rules(self.actions)

    @property
    def branches(self) -> bool:
        """Return whether a rule may ask for a branch."""
        return any(rule.what == "branch" for rule in self.rules)

    @property
    def acts(self) -> bool:
        """Return whether alerts or the population may change the training."""
        return self.adaptive_batch or self.dynamic_lr != "none" or bool(self.actions)

    @property
    def varies_batch(self) -> bool:
        """Return whether alerts may change the batch."""
        return self.adaptive_batch or "batch" in self.changes

    @property
    def changes(self) -> dict[str, str]:
        """Return what the rules do, a branch's change included: lr, clip, …, each with its action's text."""
        every = [action for rule in self.rules for action in (rule, rule.change) if action]
        return {action.what: action.text for action in every}

    def clashes(self, batch_size: int, accum: int, grad_clip: float, eval_interval: int) -> Iterable[tuple[bool, str]]:
        """Yield (whether a rule on these settings and those of the training is broken, the message), rule by rule."""
        does, alerts = self.changes, [rule.alert for rule in self.rules]
        who = "adaptive_batch" if self.adaptive_batch else f"actions with {does.get('batch')}"
        yield (self.varies_batch and not self.batch_min <= batch_size <= self.batch_max,
               f"batch_size {batch_size} is not between batch_min {self.batch_min} and batch_max {self.batch_max}, "
               f"which {who} keeps to")
        yield self.varies_batch and accum > 1, f"{who} changes the batch, and --accum divides it; give one of them"
        room = self.batch_max - self.batch_min
        for rule in self.rules:
            for action in filter(None, (rule, rule.change)):
                yield (action.what == "batch" and abs(action.by) > room,
                       f"actions: {action.text} is more than there is between batch_min {self.batch_min} and batch_max "
                       f"{self.batch_max}")
        yield ("batch" in does and self.adaptive_batch,
               f"actions: {does.get('batch')}: adaptive_batch changes the batch, too; give one of them")
        yield ("lr" in does and self.dynamic_lr != "none",
               f"actions: {does.get('lr')}: dynamic_lr changes the learning rate, too; give one of them")
        yield "clip" in does and not grad_clip, f"actions: {does.get('clip')}: grad_clip is 0, which is none; give one"
        watched = [alert for alert in alerts if alert != PLATEAU]
        yield bool(watched) and not self.cusum, f"actions: {', '.join(watched)}: cusum = false raises no such alert"
        yield PLATEAU in alerts and not self.plateau_evals, "actions: plateau: plateau_evals is 0, for never"
        for alert in (PLATEAU, "cusum_val"):
            yield alert in alerts and not eval_interval, f"actions: {alert}: --eval-interval 0 evaluates nothing"
        yield "guard" in does and not self.cusum, f"actions: {does.get('guard')}: cusum = false knows no usual norm"

    def idle(self, backend: str, batch_size: int) -> Iterable[tuple[bool, str]]:
        """Yield (whether a rule could never act, the message), rule by rule."""
        for rule in self.rules:
            beside = [other.text for other in self.rules if other.alert == rule.alert and other != rule]
            yield (rule.what == "stop" and bool(beside),
                   f"actions: {rule.alert}: {', '.join(beside)} cannot act beside stop, which ends the run; leave one "
                   "of both out")
        yield (backend == "cpu_ref" and any(rule.alert == "cusum_memory" for rule in self.rules),
               "actions: cusum_memory: cpu_ref has no memory of a device, and raises no such alert; leave it out")
        found = [action for rule in self.rules for action in (rule, rule.change) if action and action.what == "batch"]
        for key, end, outwards in (("batch_min", self.batch_min, -1), ("batch_max", self.batch_max, 1)):
            yield (batch_size == end and bool(found) and all(outwards * action.by > 0 for action in found),
                   f"actions: {self.changes.get('batch')}: batch_size {batch_size} is {key} already; change one of "
                   "both, or leave that action out")
