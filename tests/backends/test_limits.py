"""What a device must have, and what becomes of kernels where it has little."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from helios import ops
from helios.backends.vulkan import device
from helios.backends.vulkan.backend import VulkanBackend
from helios.backends.vulkan.profile import subgroup_size
from helios.errors import NoDevice, UserError
from helios.tensor import tensor

from .vulkan import GUARANTEED, PROFILE, Training, make


def limited(**changes: Any) -> VulkanBackend:
    """The kernels for GPUs, on a device that is taken for a smaller one."""
    be = make(profile="simt")
    be.profile = be.device.profile = replace(be.profile, **changes)
    return be


def test_a_device_of_the_least_computes_the_same_bits() -> None:
    least, usual = Training(limited(**GUARANTEED)), Training(make(profile="simt"))
    for _ in range(3):
        for a, b in zip(least.step(), usual.step(), strict=True):
            np.testing.assert_array_equal(a, b)
    assert least.bits() == usual.bits()
    lanes = [{c.kernel.defines["WG"] for c in t.program.commands if not isinstance(c.kernel, str)}
             for t in (least, usual)]
    assert max(lanes[0]) == 128 and max(lanes[1]) == 256


@pytest.mark.parametrize(("changes", "message"), [
    ({"shared_bytes": 8192}, r"kernel matmul needs 13,312 bytes of memory that a workgroup shares, but .* has 8,192 "),
    ({"max_lanes": 64}, r"kernel matmul needs 128 lanes in a workgroup, but .* has 64 at most; choose another device"),
    ({"max_push_bytes": 32}, r"kernel matmul needs \d+ bytes of arguments, but .* has 32 at most")])
def test_a_kernel_that_does_not_fit_is_refused_before_any_work(changes: dict[str, int], message: str) -> None:
    be = limited(**changes)
    x = tensor(np.ones((40, 40), np.float32), be)
    submits = be.submits
    with pytest.raises(UserError, match=message):
        (x @ x).numpy()
    assert be.submits == submits
    if "max_push_bytes" not in changes:
        assert ops.gelu(x).numpy()[0, 0] == pytest.approx(0.841192)


@pytest.mark.parametrize(("size", "least", "most", "expected"), [
    (32, 32, 32, 32), (64, 32, 64, 64), (128, 64, 128, 64), (128, 128, 128, 0), (2, 2, 16, 4), (1, 1, 1, 0),
    (4, 4, 4, 4)])
def test_the_size_of_a_subgroup(size: int, least: int, most: int, expected: int) -> None:
    properties = SimpleNamespace(subgroupSize=size), SimpleNamespace(minSubgroupSize=least, maxSubgroupSize=most)
    assert subgroup_size(*properties) == expected


def test_what_is_missing_is_named() -> None:
    """Of a driver without arithmetic within subgroups, or in compute shaders."""
    make()
    vk, real = device.vulkan(), device.vulkan().lib.vkGetPhysicalDeviceProperties2

    def ask(**changes: int) -> list[str]:
        def call(physical: Any, properties: Any) -> None:
            real(physical, properties)
            p11 = vk.ffi.cast("VkPhysicalDeviceVulkan11Properties*", properties.pNext)
            for name, value in changes.items():
                setattr(p11, name, value)

        lib = SimpleNamespace(vkGetPhysicalDeviceProperties2=call,
                              **{n: getattr(vk.lib, n) for n in ("vkGetPhysicalDeviceFeatures2",)})
        proxy = SimpleNamespace(**{n: getattr(vk, n) for n in dir(vk) if n != "lib"}, lib=lib)
        return [name for name in device.read_profile(proxy, device.instance(), 0, physical).missing]

    (_, physical), *_ = device.profiles()
    assert ask() == []
    assert ask(subgroupSupportedOperations=1) == ["subgroup arithmetic", "subgroup ballot"]
    assert ask(subgroupSupportedStages=1) == ["subgroups of a required size in compute shaders"]
    assert ask(subgroupSize=1024) == ["subgroups of 4 to 64 lanes"] or device.profiles()[0][0].subgroup_size == 64
    with pytest.raises(NoDevice, match="no usable Vulkan device: a device lacks subgroup ballot"):
        device.choose([replace(PROFILE, missing=("subgroup ballot",))])
