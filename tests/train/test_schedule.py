from typing import Any

import pytest

from helios.train.schedule import learning_rate

RUN: dict[str, Any] = {"steps": 500, "warmup": 50, "lr": 3e-4, "lr_min": 5e-6}


@pytest.mark.parametrize(("step", "expected"), [
    (0, 5e-6 + 2.95e-4 / 50), (24, 5e-6 + 2.95e-4 / 2), (49, 3e-4), (50, 3e-4),
    (275, (3e-4 + 5e-6) / 2), (200, 5e-6 + 2.95e-4 * 0.75), (500, 5e-6), (900, 5e-6),
])
def test_values(step: int, expected: float) -> None:
    assert learning_rate(step, **RUN) == pytest.approx(expected, rel=1e-12)


def test_rises_then_falls() -> None:
    values = [learning_rate(step, **RUN) for step in range(500)]
    assert values[:50] == sorted(values[:50])
    assert values[50:] == sorted(values[50:], reverse=True)
    assert values[-1] > 5e-6


def test_without_warmup_and_with_more_warmup_than_steps() -> None:
    assert learning_rate(0, steps=10, warmup=0, lr=1.0, lr_min=0.1) == 1.0
    assert learning_rate(4, steps=5, warmup=50, lr=1.0, lr_min=0.0) == pytest.approx(0.1)
    assert learning_rate(50, steps=5, warmup=50, lr=1.0, lr_min=0.0) == 1.0
