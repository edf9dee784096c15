"""What a driver that is new here has to compute before it is trusted."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from helios.backends.vulkan import shaders
from helios.errors import UserError
from helios.host import cache_dir

if TYPE_CHECKING:
    from helios.backends.vulkan.backend import VulkanBackend


def check(be: VulkanBackend) -> None:
    """Compare a product and its sum with numpy's, and keep in the cache folder that they were right: once for a device,
    its driver's version, its SIMD width and the kernel of products. Raises UserError where they are not."""
    p = be.profile
    about = f"{p.name}\n{p.driver}\n{p.subgroup_size}\n{be.matmul_kernel}"
    path = cache_dir() / f"checked-{hashlib.sha256(about.encode()).hexdigest()[:16]}"
    if path.exists():
        return
    draw = np.random.default_rng(0)  # whole numbers, of which every precision and every order gives the same sums
    a, b = (draw.integers(-4, 5, shape).astype(np.float32) for shape in ((70, 50), (50, 90)))
    product = be.matmul(be.array(a), be.array(b))
    if not np.array_equal(be.numpy(product), a @ b) or be.numpy(be.sum(product)) != (a @ b).sum():
        raise UserError(f"{p.name} computes wrongly: a product of matrices of whole numbers is off with its driver "
                        f"({p.driver}, {p.subgroup_size} lanes); choose another device, or install another driver")
    shaders.write_cache(path, b"")
