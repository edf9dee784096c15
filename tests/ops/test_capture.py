"""What a function that is recorded must not do, on every backend alike; and what arrays are made of."""

from __future__ import annotations

import numpy as np
import pytest

from helios.backends.backend import Backend
from helios.backends.cpu_ref import CpuRef
from helios.capture import Capture
from helios.optim import AdamW
from helios.tensor import Tensor, tensor


def test_only_what_is_in_a_recorded_function_is_recorded(each_backend: Backend) -> None:
    seen = []

    def fn(x: Tensor) -> tuple[Tensor]:
        seen.append(each_backend.recording)
        return (x * 2.0,)

    capture = Capture(fn, each_backend)
    assert not each_backend.recording
    assert capture(np.ones(3, np.float32))[0].tolist() == [2.0, 2.0, 2.0]
    assert seen == [True] and not each_backend.recording
    with pytest.raises(ZeroDivisionError):
        Capture(lambda x: (x * (1 / 0),), each_backend)(np.ones(3, np.float32))
    assert not each_backend.recording


def test_upload_in_a_recorded_function(each_backend: Backend) -> None:
    target = tensor(np.zeros(3), each_backend)

    def fn(x: Tensor) -> tuple[Tensor]:
        each_backend.upload(target.data, np.ones(3, np.float32))
        return (x + target,)

    with pytest.raises(RuntimeError, match=r"upload: it would happen at once, .* make the value an input"):
        Capture(fn, each_backend)(np.ones(3, np.float32))
    assert target.numpy().tolist() == [0.0, 0.0, 0.0]
    each_backend.upload(target.data, np.ones(3))
    assert target.numpy().tolist() == [1.0, 1.0, 1.0]
    for wrong in (np.ones(2), np.ones(3, int)):
        with pytest.raises(ValueError, match=rf"upload: {wrong.dtype.kind}.* does not fit float32 \(3,\)"):
            each_backend.upload(target.data, wrong)


def test_a_recording_that_fails_leaves_no_gradient(backend: Backend) -> None:
    """Or the next one would add to it in every replay."""
    w = tensor(np.ones(3), backend, requires_grad=True)
    optimizer = AdamW([("w", w)], lr=0.1)
    made: list[Tensor] = []

    def fn(x: Tensor, stop: bool = False) -> tuple[Tensor, Tensor]:
        loss = (w * x).sum()
        loss.backward()
        made.append(loss)
        if stop:
            raise KeyboardInterrupt
        grad = w.grad
        assert grad is not None
        optimizer.zero_grad()
        return loss, grad

    x = np.array([1.0, 2.0, 3.0], np.float32)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            Capture(lambda t: fn(t, stop=True), backend)(x)
        assert w.grad is None
    capture = Capture(fn, backend)
    assert [capture(x)[1].tolist() for _ in range(2)] == [[1.0, 2.0, 3.0]] * 2
    if backend.name == "vulkan":  # its values were to be computed later
        for use in (made[0].numpy, lambda: (made[0] * 2.0).numpy()):
            with pytest.raises(RuntimeError, match="this array was never written: what was to compute it failed"):
                use()
    assert (w * 2.0).sum().item() == 6.0


def test_a_rate_that_a_recorded_function_would_repeat(each_backend: Backend) -> None:
    w = tensor(np.ones(3), each_backend, requires_grad=True)
    optimizer = AdamW([("w", w)], lr=0.1)

    def fn(x: Tensor) -> tuple[Tensor]:
        optimizer.zero_grad()
        loss = (w * x).sum()
        loss.backward()
        optimizer.step(loss=loss)
        return (loss,)

    with pytest.raises(RuntimeError, match=r"AdamW\.step: .* repeat the rate of now; take lr, .* as an input"):
        Capture(fn, each_backend)(np.ones(3, np.float32))
    assert w.numpy().tolist() == [1.0, 1.0, 1.0]
    fn(tensor(np.ones(3), each_backend))
    assert w.numpy()[0] < 1.0


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1, 2**40])
def test_integers_that_int32_does_not_hold(each_backend: Backend, value: int) -> None:
    with pytest.raises(ValueError, match=f"integers must fit int32, got -?[0-9]+ to {max(value, 3)}"):
        each_backend.array(np.array([3, value]))
    target = each_backend.array(np.zeros(2, np.int32))
    with pytest.raises(ValueError, match="integers must fit int32"):
        each_backend.upload(target, np.array([3, value]))
    with pytest.raises(TypeError, match="expected real numbers, got complex128"):
        each_backend.array(np.array([1j]))


def test_what_arrays_are_made_of(each_backend: Backend) -> None:
    for value, dtype in ((np.uint8(200), np.int32), (True, np.int32), (2**31 - 1, np.int32), (1.5, np.float32),
                         (np.float16(0.1), np.float32), (np.arange(6).reshape(2, 3).T, np.int32)):
        made = each_backend.numpy(each_backend.array(np.asarray(value)))
        assert made.dtype == dtype and made.shape == np.shape(value) and np.array_equal(made, value)
    source = np.ones(3, np.float32)
    copy = each_backend.array(source)
    source[0] = 2
    assert each_backend.numpy(copy).tolist() == [1.0, 1.0, 1.0]
    assert CpuRef(np.float64).array(np.float32(0.1)).dtype == np.float64
