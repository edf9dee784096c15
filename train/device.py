"""The backend that a run computes on, and whether the run fits in its memory."""

from __future__ import annotations

from collections.abc import Callable

from helios.backends import get_backend
from helios.backends.backend import Backend
from helios.backends.vulkan.environment import choose_width
from helios.errors import NoDevice, TooLarge, UserError
from helios.model.config import GPTConfig

MIB = 2**20
LAVAPIPE = "llvmpipe"  # how the names of its devices begin
SLACK = 1.03  # factor on the estimate of memory, for all small arrays
ADVICE = "`./run setup` installs Mesa's lavapipe, a driver for CPUs; --backend cpu_ref needs no driver"


def open_backend(name: str, device: str | None, say: Callable[[str], None], precision: str = "f32",
                 simd_width: str = "auto", tiles: str = "tuned") -> Backend:
    """Return the backend of that name; for "auto" vulkan or, without a device, cpu_ref, of which `say` is told, as of
    a choice among devices. Raises UserError; where there is no device it is NoDevice, with advice."""
    if simd_width != "auto":
        choose_width(simd_width)
    backend = _opened(name, device, say, precision)
    if backend.name == "vulkan":
        from helios.backends.vulkan import tuning
        from helios.backends.vulkan.backend import VulkanBackend  # now, for it needs a driver

        assert isinstance(backend, VulkanBackend)
        backend.tiles = tuning.load(backend.profile, backend.matmul_kernel) if tiles == "tuned" else {}
    if simd_width != "auto" and not backend.device_name.startswith(LAVAPIPE):
        raise UserError(f"simd_width {simd_width} is of lavapipe, and {backend.device_name} is another device; leave "
                        f"it out")
    return backend


def _opened(name: str, device: str | None, say: Callable[[str], None], precision: str) -> Backend:
    if name == "cpu_ref" and device is not None:
        raise UserError(f"--device {device} chooses a Vulkan device, and cpu_ref has none; leave it out")
    try:
        backend = get_backend("vulkan" if name == "auto" else name, device, precision)
        if device is None and backend.others:
            say(f"computing on {backend.device_name}; --device chooses another: {', '.join(backend.others)}")
        return backend
    except NoDevice as error:
        if name != "auto" or device is not None:
            raise NoDevice(advised(error)) from None
        say(f"warning: no Vulkan device ({advised(error)}): computing on cpu_ref, which is slow")
        return get_backend("cpu_ref", precision=precision)


def device_kind(backend: Backend) -> dict[str, str]:
    """Return what a run's bits depend on besides its settings: backend, device and driver."""
    return {"backend": backend.name, "name": backend.device_name, "driver": backend.driver}


def tuned(backend: Backend) -> dict[str, str]:
    """Return the kernels and tiles of products that helios-bench tune chose and this backend uses, by shape class."""
    if backend.name != "vulkan":
        return {}
    from helios.backends.vulkan import tuning
    from helios.backends.vulkan.backend import VulkanBackend

    assert isinstance(backend, VulkanBackend)
    return tuning.told(backend.tiles, backend.matmul_kernel)


def advised(error: Exception) -> str:
    """Return the error's text, with ADVICE where no device was found."""
    return f"{error}; {ADVICE}" if isinstance(error, NoDevice) else str(error)


def memory_needed(model: GPTConfig, batch_size: int, beside: GPTConfig | None = None, turned: bool = True) -> int:
    """Return about how many bytes a training takes, or two with another model beside it: weights, gradients, two
    moments, and what a micro-step keeps for its backward pass. One arena serves steps, micro-steps and evaluations.

    turned: on CPUs in f32 the logits' gradient is there a second time, transposed, and so are the sums of the
    product with it, a gradient of the table of tokens.
    """
    b, t, d = batch_size, model.block_size, model.n_embd
    # A block keeps two norms, qkv (3), attention and its projection, two residual sums: 9·D, with qk_norm 2·D more; and
    # the results of fc1 and the activation. Besides, there are the logits (whose gradient takes their place), or the
    # gradients of one block's hidden values, or of its qkv.
    hidden = [(act.parts + 1) * f for act, f in zip(model.activations, model.ffn_dims, strict=True)]
    kept = model.n_layer * ((11 if model.qk_norm else 9) * d + model.n_head) + sum(hidden)
    logits = (b * t + turned * (b * t + d)) * model.vocab_size
    most = max(logits, b * t * max(3 * d, *hidden))
    return round(SLACK * 4 * (4 * model.parameters() + b * t * kept + most)) + (
        memory_needed(beside, batch_size, turned=turned) if beside else 0)


def check_memory(model: GPTConfig, batch_size: int, backend: Backend, taken: int = 0,
                 beside: GPTConfig | None = None) -> None:
    """Raise TooLarge where a training, or two with another model beside it, needs more memory than is left, or a larger
    array than the device allows. taken: bytes that the run holds now and would give back."""
    turned = backend.kind == "cpu" and backend.precision == "f32"
    needed, available = memory_needed(model, batch_size, beside, turned), backend.memory()["available"] + taken
    if needed > available:
        twice = " twice, with a challenger beside the model," if beside else ""
        raise TooLarge(f"training {model.parameters():,} parameters{twice} at batch {batch_size} needs about "
                       f"{needed / MIB:,.0f} MiB, but {backend.device_name} has {available / MIB:,.0f} MiB left; "
                       f"choose a smaller model, batch or block")
    rows = batch_size * model.block_size
    hidden = (act.parts * f for act, f in zip(model.activations, model.ffn_dims, strict=True))
    largest = 4 * max(model.parameters(), rows * max(model.vocab_size, 3 * model.n_embd, *hidden))
    if largest > backend.max_allocation:
        raise TooLarge(f"at batch {batch_size} the largest array takes {largest / MIB:,.0f} MiB, but "
                       f"{backend.device_name} gives {backend.max_allocation / MIB:,.0f} MiB at once; "
                       f"choose a smaller model, vocabulary, batch or block")
