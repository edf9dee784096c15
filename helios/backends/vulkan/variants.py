"""Which variant of a kernel a device gets.

Every choice by device is here and in products.py, and reads the profile: "cpu" devices have no use for lanes
beyond a subgroup's, but pay for each workgroup; GPUs want many lanes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from helios.backends.backend import Shape
from helios.backends.vulkan.array import FLOAT, VkArray
from helios.backends.vulkan.pipelines import Kernel, Pipelines
from helios.backends.vulkan.profile import DeviceProfile

# op → EXPR of elementwise.comp, in x, y, p.alpha, p.beta
ELEMENTWISE = {
    "axpby": "p.alpha * x + p.beta * y",
    "mul": "x * y",
    "scale": "p.alpha * x",
    "activation": "act(x)",  # of a FORMULA
    "activation_backward": "act_grad(x) * y",
    "softcap": "softcap(x, p.alpha)",
    "softcap_backward": "softcap_grad(x, p.alpha) * y",
}
BUSY = 16384  # invocations that keep a GPU busy
# Of the kernels that include lib/epilogue.glsl; fuse.py gives them one.
NO_EPILOGUE: dict[str, Any] = {"HAS_EPILOGUE": 0, "Y": 0, "SWAP": 0, "FORMULA": ""}


def divide(n: int, d: int) -> int:
    """Return n/d, rounded up."""
    return -(-n // d)


class Variants:
    """What the primitives choose kernels by. A backend brings the device, `empty` and `dispatch`."""

    profile: DeviceProfile
    pipelines: Pipelines
    precision: str

    def empty(self, shape: Shape, dtype: np.dtype = FLOAT) -> VkArray:
        """Return an array of undefined contents."""
        raise NotImplementedError

    def dispatch(self, kernel: Kernel, workgroups: int | tuple[int, int], elementwise: bool = False, **given: Any
                 ) -> None:
        """Collect a dispatch of `workgroups`, any number of them or a grid, with the kernel's arguments by name.

        elementwise: an output may lie over an input of its size.
        """
        raise NotImplementedError

    def kernel(self, name: str, lanes: int = 0, **defines: Any) -> Kernel:
        """Return a kernel with workgroups of `lanes`, or of one subgroup; one for matrix units gets their fragments'
        side."""
        sg = self.profile.subgroup_size
        if name.endswith("_coopmat"):
            defines["F"] = self.profile.fragment
        return self.pipelines.get(name, SG=sg, WG=lanes or sg, **defines)

    @property
    def half(self) -> int:
        """Return HALF of the kernels that include lib/half.glsl."""
        return int(self.precision == "mixed")

    @property
    def lanes(self) -> int:
        """Return the lanes of a workgroup in kernels where each lane works for itself."""
        size = self.profile.subgroup_size
        return size if self.profile.profile == "cpu" else min(256, self.profile.max_lanes // size * size)

    @property
    def span(self) -> int:
        """Return how many elements a lane takes in elementwise kernels."""
        return 64 if self.profile.profile == "cpu" else 4

    def pairs(self, *lengths: int, at: Sequence[VkArray] = ()) -> int:
        """Return PAIRS of the kernels that include lib/pairs.glsl, for rows of these lengths and arrays at these places
        in blocks, which begin at multiples of 8 bytes."""
        even = all(n % 2 == 0 for n in lengths) and all(x.offset % 8 == 0 for x in at)
        return int(even and self.profile.profile == "cpu" and "shaderInt64" in self.profile.features)

    def parts(self, rows: int, columns: int, sums: bool = True) -> int:
        """Return in how many runs rows are gone through by lanes that own columns. Where these sum over them, in one if
        the columns alone keep the device busy."""
        if self.profile.profile == "cpu":
            return 1
        if not sums:
            return divide(rows, self.span)
        return max(1, min(divide(BUSY, columns), divide(rows, 16)))

    def _each(self, name: str, n: int, elementwise: bool = False, defines: dict[str, Any] | None = None, **args: Any
              ) -> None:
        kernel = self.kernel(name, self.lanes, SPAN=self.span, **(defines or {}))
        self.dispatch(kernel, divide(n, self.lanes * self.span), elementwise, n=n, **args)
