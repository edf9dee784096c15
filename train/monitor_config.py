"""The settings of what is watched in a run; docs/search.md explains them."""

from __future__ import annotations

from dataclasses import dataclass

from helios.model.genes import in_steps
from helios.model.settings import ANY, COUNT, NATURAL, POSITIVE, Range, Settings, one_of, setting


@dataclass(frozen=True)
class MonitorConfig(Settings):
    """What is watched in a run, and what may change its training."""

    cusum: bool = setting(True, ANY, "raise an alert where gradient norm, clipping, speed or validation loss shift")
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
    batch_min: int = setting(1, COUNT, "smallest batch that adaptive_batch may choose, in sequences")
    batch_max: int = setting(64, COUNT, "largest batch that adaptive_batch may choose, in sequences")
    batch_step: int = setting(4, COUNT, "sequences by which adaptive_batch changes the batch")
    calm_steps_before_restore: int = setting(200, COUNT, "steps without an alert after which one change is undone")
    dynamic_lr: str = setting("none", one_of("none", "cusum", "entropy"), "what may change the learning rate: alerts, "
                              "or the entropy of a search's population")

    @property
    def acts(self) -> bool:
        """Return whether alerts or the population may change the batch or the learning rate."""
        return self.adaptive_batch or self.dynamic_lr != "none"
