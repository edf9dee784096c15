"""The execution model, on a whole training step: one submit, no allocation, declared hazards, the same bits."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from helios.backends.vulkan.audit import audit
from helios.backends.vulkan.memory import lent
from helios.backends.vulkan.stream import Range
from helios.errors import DeviceLost
from helios.tensor import Tensor

from .vulkan import STEADY, Training, make


def test_one_submit_and_no_allocation_after_the_first_step() -> None:
    be = make()
    training = Training(be)
    training.step()
    submits, memory = be.submits, (be.heap.pool, be.heap.used)
    for _ in range(5):
        training.step()
    assert be.submits - submits == 5
    assert (be.heap.pool, be.heap.used) == memory


def test_memory_is_flat_over_2000_steps() -> None:
    be = make()
    training = Training(be, "gelu")
    training.step()
    memory = be.heap.pool, be.heap.used
    for _ in range(2000):
        training.step()
    assert (be.heap.pool, be.heap.used) == memory
    assert training.optimizer.last()["updates"] == 2001


def test_same_seed_same_bits() -> None:
    runs = []
    for _ in range(2):
        training = Training(make())
        losses = [training.step()[0].tobytes() for _ in range(4)]
        runs.append((losses, training.bits()))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("settings", [{}, STEADY], ids=["", "steady"])
def test_order_within_a_group_is_free(settings: dict[str, Any]) -> None:
    be = make()
    plain, shuffled = Training(be, **settings), Training(be, **settings)
    for seed in range(6):
        plain.step()
        if seed:  # the first call records
            shuffled.program.shuffle(seed)
        shuffled.step()
        assert shuffled.bits() == plain.bits(), f"shuffle {seed} changed bits"
    assert any(len(batch) > 1 for batch in plain.program.batches), "there was nothing to shuffle"


def test_a_missing_barrier_would_be_noticed() -> None:
    """The control of the test above: with all commands in one group, some order gives other bits."""
    be = make()
    plain, broken = Training(be), Training(be)
    plain.step(), broken.step()
    program = broken.program
    program.batches = [[c for batch in program.batches for c in batch if c.uses]]
    program.shuffle(1)
    plain.step(), broken.step()
    assert plain.bits() != broken.bits()


@pytest.mark.parametrize("settings", [{"dropout": 0.0}, {"dropout": 0.2}, STEADY], ids=["", "dropout", "steady"])
def test_kernels_touch_only_what_they_declare(settings: dict[str, Any]) -> None:
    be = make(chunk_size=1 << 16)
    audited, plain = Training(be, **settings), Training(be, **settings)
    audited.step(), plain.step()
    faults, outputs = audit(audited.program, audited.inputs())
    assert faults == []
    for ours, theirs in zip(outputs, plain.step(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert audited.bits() == plain.bits()


def test_the_audit_notices_an_undeclared_access() -> None:
    """The control of the test above: hide one read, then one write, from the declaration."""
    be = make(chunk_size=1 << 16)
    training, plain = Training(be, "gelu"), Training(be, "gelu")
    training.step(), plain.step()
    expected = plain.step()
    adamw = next(c for c in training.program.commands if c.name == "adamw")
    kept = list(adamw.uses)
    adamw.uses[:] = [u for u in kept if "w" in u.access]  # grad, stats and lr unread: poison gets in
    _, outputs = audit(training.program, training.inputs())
    assert outputs[0] == expected[0] and training.bits() != plain.bits()
    adamw.uses[:] = [Range(u.block, u.offset, u.size, "r") for u in kept]
    faults, _ = audit(training.program, training.inputs())
    assert any(fault.startswith("adamw:") for fault in faults)


def test_phases_and_profile_cover_the_step() -> None:
    be = make()
    training = Training(be)
    training.step()
    if not be.device.timestamps:
        pytest.skip("this device has no timestamps")
    assert set(training.program.phases) == {"fwd", "bwd", "grad_norm", "optim"}
    assert all(ms >= 0 for ms in training.program.phases.values())
    profile = training.program.profile()
    assert len(profile) == training.program.dispatches
    assert {d.kernel for d in profile} >= {"attention", "adamw", "clip_stats", "cross_entropy"}


@pytest.mark.parametrize("profile", ["cpu", "simt"])
def test_what_the_norm_of_q_and_k_adds_to_a_step(profile: str) -> None:
    """A block has its two passes and a sum for each of two weights more; nothing is copied, nothing fused is undone."""
    be, found = make(profile=profile), []
    for qk_norm in (False, True):
        training = Training(be, qk_norm=qk_norm)
        training.step()
        found.append(Counter(c.name for c in training.program.commands))
    assert found[1] - found[0] == {"qk_norm": 2 * 6, "sum_rows": 2 * 6} and not found[0] - found[1]


def test_two_calls_under_way() -> None:
    """Inputs and outputs of a call are its own while the next is already submitted."""
    be = make()
    one, two = Training(be), Training(be)
    expected = [one.step()[0] for _ in range(5)]
    reads = []
    for _ in range(5):
        reads.append(two.capture.submit(*two.inputs()))
        two.steps += 1
    assert [float(read()[0]) for read in reads] == [float(x) for x in expected]
    assert one.bits() == two.bits()


def test_a_lost_device_is_reported_with_its_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    before, be = set(lent), make()
    training = Training(be, "gelu")
    training.step()
    pages = lent - before
    assert not be.device.imports or pages
    read = training.capture.submit(*training.inputs())
    vk = be.queue.vk
    vk.lib.vkQueueWaitIdle(be.device.queue)
    lost = SimpleNamespace(vkWaitSemaphores=lambda *args: vk.VK_ERROR_DEVICE_LOST,
                           vkGetQueryPoolResults=vk.lib.vkGetQueryPoolResults)
    constants = {n: getattr(vk, n) for n in dir(vk) if n.startswith("VK_")}
    proxy = SimpleNamespace(**constants, lib=lost, ffi=vk.ffi)
    with monkeypatch.context() as patched:
        patched.setattr(be.queue, "vk", proxy)
        with pytest.raises(DeviceLost, match=rf"{be.device_name.split()[0]}.* was lost .* had begun optim of replay 2"):
            read()
    assert not lent & pages  # the memory went back
    with pytest.raises(DeviceLost, match="was lost while computing"):
        training.step()


def test_a_new_shape_is_a_new_recording() -> None:
    training = Training(make())
    x, y, rng, lr = training.inputs()
    training.capture(x, y, rng, lr)
    training.capture(x[:2, :5], y[:2, :5], rng, lr)
    assert len(training.capture.programs) == 2
    with pytest.raises(ValueError, match="recorded for an input of shape"):
        training.program.submit((x[:1], y, rng, lr))


def test_reading_while_recording_is_refused() -> None:
    from helios.capture import Capture

    be = make()
    with pytest.raises(RuntimeError, match="cannot be read while it is being recorded"):
        Capture(lambda x: (x * float(x.numpy()[0]),), be)(np.ones(3, np.float32))
    assert Capture(lambda x: (x * 2.0,), be)(np.ones(3, np.float32))[0].tolist() == [2.0, 2.0, 2.0]


def test_captures_do_not_nest() -> None:
    from helios.capture import Capture

    be, x = make(), np.ones(4, np.float32)
    inner = Capture(lambda t: (t * 2.0,), be)
    outer = Capture(lambda t: (t + Tensor(be.array(inner(x)[0]), be),), be)
    with pytest.raises(RuntimeError, match="cannot be recorded while another"):
        outer(x)
    inner(x)
    with pytest.raises(RuntimeError, match="cannot be called in a function that is being recorded"):
        outer(x)
    assert inner(x)[0].tolist() == [2.0] * 4


def test_gradient_is_computed_where_the_optimizer_wants_it() -> None:
    """No copies of gradients: the matmuls write into the optimizer's slab."""
    training = Training(make())
    training.step()
    copies = [c for c in training.program.commands if c.name == "copy"]
    assert len(copies) == 0, f"{len(copies)} copies in a step"
