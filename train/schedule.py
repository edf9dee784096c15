"""The learning rate of a step."""

from __future__ import annotations

import math


def warmed_up(step: int, *, lr: float, lr_min: float, warmup: int) -> float:
    """Return the rate of the 0-based `step`: linear from lr_min to lr in `warmup` steps, then lr."""
    return lr_min + (lr - lr_min) * (step + 1) / warmup if step < warmup else lr


def learning_rate(step: int, *, steps: int, warmup: int, lr: float, lr_min: float) -> float:
    """Return the rate of the 0-based `step`: linear from lr_min to lr in `warmup` steps, then a cosine back to `steps`.

    It is lr_min + (lr - lr_min)·(step + 1)/warmup, then lr_min + (lr - lr_min)·½(1 + cos(π·(step - warmup)/(steps -
    warmup))), and lr_min from `steps` on.
    """
    if step < warmup:
        return warmed_up(step, lr=lr, lr_min=lr_min, warmup=warmup)
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return lr_min + (lr - lr_min) * 0.5 * (1.0 + math.cos(math.pi * progress))
