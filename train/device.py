"""Where a run computes, and whether it fits there."""

from __future__ import annotations

from collections.abc import Callable

from helios.backends import get_backend
from helios.backends.backend import Backend
from helios.errors import NoDevice, UserError
from helios.model.config import MLPS, GPTConfig

MIB = 2**20
SLACK = 1.03  # of the estimate of memory, for what is small
ADVICE = "`./run setup` installs Mesa's lavapipe, a driver for CPUs; --backend cpu_ref needs no driver"


def open_backend(name: str, device: str | None, say: Callable[[str], None], precision: str = "f32") -> Backend:
    """Return the backend of that name; for "auto" vulkan where it has a device, else cpu_ref, and say so.

    Raises UserError, with advice where there is no device.
    """
    if name == "cpu_ref" and device is not None:
        raise UserError(f"--device {device} chooses a Vulkan device, and cpu_ref has none; leave it out")
    try:
        return get_backend("vulkan" if name == "auto" else name, device, precision)
    except NoDevice as error:
        if name != "auto" or device is not None:
            raise NoDevice(advised(error)) from None
        say(f"warning: no Vulkan device ({advised(error)}): computing on cpu_ref, which is slow")
        return get_backend("cpu_ref", precision=precision)


def device_kind(backend: Backend) -> dict[str, str]:
    """Return what a run's bits depend on beside its settings: the backend, and the kind of device and its driver."""
    return {"backend": backend.name, "name": backend.device_name, "driver": backend.driver}


def advised(error: Exception) -> str:
    """Return the error's text and, where there is no device, what to do about it here."""
    return f"{error}; {ADVICE}" if isinstance(error, NoDevice) else str(error)


def memory_needed(model: GPTConfig, batch_size: int) -> int:
    """Return about how many bytes a training takes.

    Weights, gradients and two moments are counted exactly, and what waits for the backward pass of a micro-step: one
    arena serves steps, micro-steps and evaluations.
    """
    b, t, d = batch_size, model.block_size, model.n_embd
    # A block keeps two norms, qkv (3), attention and its projection, two residual sums: 9·D; and what fc1 and the
    # activation give. Beside all that there are, in turn, the logits (their gradient takes their place) and the
    # gradients of one block's hidden values.
    hidden = [(MLPS[name].parts + 1) * f for name, f in zip(model.activations, model.ffn_dims, strict=True)]
    kept = model.n_layer * (9 * d + model.n_head) + sum(hidden)
    return round(SLACK * 4 * (4 * model.parameters() + b * t * (kept + max(model.vocab_size, *hidden))))


def check_memory(model: GPTConfig, batch_size: int, backend: Backend, taken: int = 0) -> None:
    """Raise UserError where the model cannot be trained in what the device has left, or gives at once.

    taken: bytes that the run itself has now, and would give back.
    """
    needed, available = memory_needed(model, batch_size), backend.memory()["available"] + taken
    if needed > available:
        raise UserError(f"training {model.parameters():,} parameters at batch {batch_size} needs about "
                        f"{needed / MIB:,.0f} MiB, but {backend.device_name} has {available / MIB:,.0f} MiB left; "
                        f"choose a smaller model, batch or block")
    rows = batch_size * model.block_size
    hidden = (MLPS[name].parts * f for name, f in zip(model.activations, model.ffn_dims, strict=True))
    largest = 4 * max(model.parameters(), rows * max(model.vocab_size, 3 * model.n_embd, *hidden))
    if largest > backend.max_allocation:
        raise UserError(f"at batch {batch_size} the largest array takes {largest / MIB:,.0f} MiB, but "
                        f"{backend.device_name} gives {backend.max_allocation / MIB:,.0f} MiB at once; "
                        f"choose a smaller model, vocabulary, batch or block")
