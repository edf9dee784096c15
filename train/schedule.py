"""The learning rate of a step."""

from __future__ import annotations

import math


def learning_rate(step: int, *, steps: int, warmup: int, lr: float, lr_min: float) -> float:
    """Of 0-based `step` among `steps`: linear from lr_min to lr over `warmup` steps, then a cosine back to lr_min.

    With n = step + 1: lr_min + (lr - lr_min)·n/warmup, then lr_min + (lr - lr_min)·½(1 + cos(π(step - warmup)/(steps -
    warmup))). Beyond `steps` it stays at lr_min.
    """
    if step < warmup:
        return lr_min + (lr - lr_min) * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return lr_min + (lr - lr_min) * 0.5 * (1.0 + math.cos(math.pi * progress))
