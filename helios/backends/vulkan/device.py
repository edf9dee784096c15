"""The Vulkan device: instance, choice, queue."""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from typing import Any, NoReturn

import numpy as np
import psutil

from helios.backends.vulkan import environment, shaders, tuning
from helios.backends.vulkan.exclusive import at_exit, check_process
from helios.backends.vulkan.profile import (
    FEATURES,
    REQUIRED,
    TYPES,
    VULKAN_1_3,
    DeviceProfile,
    compute_family,
    read_profile,
    struct,
)
from helios.errors import DeviceLost, NoDevice, UserError
from helios.host import cache_dir

HOST_MEMORY = "VK_EXT_external_memory_host"
COOPMAT = ("shaderFloat16", "vulkanMemoryModel")  # what kernels for matrix units need besides the extension


def _advice() -> str:
    hiding = next((name for name in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES") if name in os.environ), None)
    return f"{hiding}={os.environ[hiding]} chooses the drivers: unset it" if hiding else "install a Vulkan driver"


@cache
def vulkan() -> Any:
    """Return the module `vulkan`. Raises NoDevice where there is no loader."""
    environment.prepare()
    try:
        import vulkan as vk
    except Exception as e:  # the module raises whatever its dlopen gave
        raise NoDevice(f"no Vulkan loader (libvulkan.so.1) on this machine ({e}); install it and a driver") from None
    return vk


def instance() -> Any:
    """Return the instance of this process. Raises NoDevice where no driver can be used, UserError where the validation
    layer is wanted and missing, RuntimeError in a process that was forked from one that has an instance."""
    handle, pid = _instance()
    check_process(pid, "Vulkan")
    return handle


@cache
def _instance() -> tuple[Any, int]:
    vk = vulkan()
    app = vk.VkApplicationInfo(pApplicationName="helios", apiVersion=VULKAN_1_3)
    layers = ["VK_LAYER_KHRONOS_validation"] if os.environ.get("HELIOS_VALIDATION") else []
    extensions = ["VK_EXT_debug_utils"] if layers else []
    try:
        handle = vk.vkCreateInstance(vk.VkInstanceCreateInfo(
            pApplicationInfo=app, ppEnabledLayerNames=layers, ppEnabledExtensionNames=extensions), None)
    except vk.VkErrorLayerNotPresent:
        raise UserError("HELIOS_VALIDATION is set, but the Khronos validation layer is not installed") from None
    except vk.VkError as e:
        raise NoDevice(f"Vulkan found no usable driver ({type(e).__name__}); {_advice()}") from None
    if layers:
        _listen(vk, handle)
    return handle, os.getpid()


validation_messages: list[str] = []


def _listen(vk: Any, handle: Any) -> None:
    """Collect what the validation layer says in `validation_messages`."""

    def callback(severity: int, kind: int, data: Any, user: Any) -> int:
        validation_messages.append(vk.ffi.string(data.pMessage).decode())
        return 0

    create = vk.vkGetInstanceProcAddr(handle, "vkCreateDebugUtilsMessengerEXT")
    destroy = vk.vkGetInstanceProcAddr(handle, "vkDestroyDebugUtilsMessengerEXT")
    messenger = create(handle, vk.VkDebugUtilsMessengerCreateInfoEXT(
        messageSeverity=vk.VK_DEBUG_UTILS_MESSAGE_SEVERITY_WARNING_BIT_EXT
        | vk.VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT,
        messageType=vk.VK_DEBUG_UTILS_MESSAGE_TYPE_VALIDATION_BIT_EXT
        | vk.VK_DEBUG_UTILS_MESSAGE_TYPE_GENERAL_BIT_EXT, pfnUserCallback=callback), None)
    at_exit(destroy, handle, messenger, None)


def profiles() -> list[tuple[DeviceProfile, Any]]:
    """Return every device that the loader knows, usable or not, with its handle."""
    vk = vulkan()
    try:
        found = list(vk.vkEnumeratePhysicalDevices(instance()))
    except vk.VkError:
        found = []
    return [(read_profile(vk, instance(), i, physical), physical) for i, physical in enumerate(found)]


def choose(found: Sequence[DeviceProfile], wanted: str | None = None) -> DeviceProfile:
    """Return the device of that index, of that name or with that in its name; without `wanted` the one whose kind is
    the fastest: discrete before integrated and virtual GPUs, lavapipe before other drivers for CPUs.

    Raises UserError where `wanted` names none or several, NoDevice where there is none that can be used.
    """
    if not found:
        raise NoDevice(f"Vulkan found no device; {_advice()}")
    if wanted is not None:
        name, listing = wanted.strip().lower(), ", ".join(f"[{p.index}] {p.name}" for p in found)
        named = [p for p in found if name in (p.name.lower(), str(p.index))]
        if not named and name and not name.isdecimal():
            named = [p for p in found if name in p.name.lower()]
        if not named:
            raise UserError(f"no Vulkan device {wanted!r}; this machine has {listing}")
        if len(named) > 1:
            raise UserError(f"{len(named)} Vulkan devices are named {wanted!r}; choose one by its index: {listing}")
        found = named
    usable = [p for p in found if not p.missing]
    if not usable:
        raise NoDevice(f"no usable Vulkan device: {found[0].name} lacks {', '.join(found[0].missing)}; {_advice()}")
    order = list(TYPES.values())
    return min(usable, key=lambda p: (order.index(p.type), not p.name.startswith("llvmpipe"), p.index))


class Device:
    """A logical device with one compute queue."""

    def __init__(self, wanted: str | None = None, profile: str | None = None) -> None:
        vk = self.vk = vulkan()
        found = profiles()
        self.profile = choose([p for p, _ in found], os.environ.get("HELIOS_DEVICE") if wanted is None else wanted)
        self.physical = next(handle for p, handle in found if p is self.profile)
        self.others = [f"[{p.index}] {p.name}" for p, _ in found if p is not self.profile and not p.missing]
        if profile:
            self.profile = replace(self.profile, profile=profile)
        coopmat = self.profile.profile == "coopmat" and self.profile.fragment > 0  # without, a test emulates them
        self.family, _ = compute_family(vk, self.physical)
        f13 = struct(vk, "VkPhysicalDeviceVulkan13Features", "VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_3_FEATURES")
        f12 = struct(vk, "VkPhysicalDeviceVulkan12Features", "VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES",
                      f13)
        f2 = struct(vk, "VkPhysicalDeviceFeatures2", "VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2", f12)
        wanted2 = tuple(n for n in FEATURES if n in self.profile.features)
        wanted12 = REQUIRED["features12"] + (COOPMAT if coopmat else ())
        for names, features in ((wanted2, f2.features), (wanted12, f12), (REQUIRED["features13"], f13)):
            for name in names:
                setattr(features, name, 1)
        extensions = {e.extensionName for e in vk.vkEnumerateDeviceExtensionProperties(self.physical, None)}
        self.has_budget = "VK_EXT_memory_budget" in extensions
        huge = hasattr(mmap, "MADV_HUGEPAGE")  # see memory.py
        self.imports = self.profile.type == "cpu" and HOST_MEMORY in extensions and huge
        enabled = ["VK_EXT_memory_budget"] * self.has_budget + [HOST_MEMORY] * self.imports
        first = f2
        if coopmat:
            enabled.append("VK_KHR_cooperative_matrix")
            first = struct(vk, "VkPhysicalDeviceCooperativeMatrixFeaturesKHR",
                            "VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR", f2)
            first.cooperativeMatrix = 1
        queue = vk.VkDeviceQueueCreateInfo(queueFamilyIndex=self.family, queueCount=1, pQueuePriorities=[1.0])
        try:
            self.handle = vk.vkCreateDevice(self.physical, vk.VkDeviceCreateInfo(
                pNext=first, pQueueCreateInfos=[queue], ppEnabledExtensionNames=enabled), None)
        except vk.VkErrorDeviceLost:
            raise DeviceLost(f"{self.profile.name} ({self.profile.driver}) was lost as it was opened") from None
        except vk.VkError as error:
            raise NoDevice(f"{self.profile.name} cannot be opened ({type(error).__name__}); see dmesg") from None
        self.queue = vk.vkGetDeviceQueue(self.handle, self.family, 0)
        self.chunks: set[Any] = set()  # all memory that is taken
        self.lost = ""  # how, where it was
        at_exit(vk.lib.vkDeviceWaitIdle, self.handle)  # the bare function, which raises nothing for a lost device

    def check(self, result: int, what: str) -> None:
        """Raise unless a raw call succeeded."""
        if result == self.vk.VK_ERROR_DEVICE_LOST:
            self.lose(f"was lost in {what}")
        if result < 0:
            raise RuntimeError(f"{what} failed with Vulkan error {result} on {self.profile.name}")

    def lose(self, how: str) -> NoReturn:
        """Give the device's memory back and raise DeviceLost, now and whenever the backend is used again."""
        self.lost = f"{self.profile.name} ({self.profile.driver}) {how}"
        for chunk in [c for c in self.chunks if c.mapped is None]:  # the host may be about to use what it has mapped
            chunk.destroy()
        raise DeviceLost(self.lost)

    @property
    def timestamps(self) -> bool:
        """Return whether its queue has a clock."""
        return self.profile.timestamp_bits > 0

    def milliseconds(self, stamps: np.ndarray) -> np.ndarray:
        """Return the times between timestamps, uint64 [n], as float64 [n - 1]. Their upper bits mean nothing where the
        device says so, and the others wrap around."""
        mask = np.uint64((1 << self.profile.timestamp_bits) - 1)
        return (np.diff(stamps) & mask).astype(np.float64) * self.profile.timestamp_ns / 1e6

    def available(self) -> int:
        """Return how many bytes of device memory can still be had."""
        if self.profile.type == "cpu":
            return min(psutil.virtual_memory().available, self.profile.memory_bytes)
        if self.has_budget:
            vk = self.vk
            budget = struct(vk, "VkPhysicalDeviceMemoryBudgetPropertiesEXT",
                             "VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT")
            props = struct(vk, "VkPhysicalDeviceMemoryProperties2",
                            "VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2", budget)
            vk.lib.vkGetPhysicalDeviceMemoryProperties2(self.physical, props)
            heaps = props.memoryProperties
            return max((budget.heapBudget[i] - budget.heapUsage[i] for i in range(heaps.memoryHeapCount)
                        if heaps.memoryHeaps[i].flags & vk.VK_MEMORY_HEAP_DEVICE_LOCAL_BIT), default=0)
        return self.profile.memory_bytes


def describe() -> dict[str, Any]:
    """Return what there is of Vulkan: loader, devices, compiler, caches, environment. Raises NoDevice without a
    loader."""
    vk = vulkan()
    names = ("LP_NATIVE_VECTOR_WIDTH", "MESA_SHADER_CACHE_DIR", "VK_DRIVER_FILES", "VK_ICD_FILENAMES", "HELIOS_CACHE")
    version = vk.vkEnumerateInstanceVersion()
    return {
        "loader": f"{version >> 22}.{version >> 12 & 0x3FF}.{version & 0xFFF}",
        "devices": [asdict(p) for p, _ in profiles()],
        "compiler": shaders.compiler_name(),
        "caches": {"kernels": str(cache_dir() / "spirv"), "pipelines": str(cache_dir()),
                   "driver": os.environ.get("MESA_SHADER_CACHE_DIR")},
        "env": {n: os.environ[n] for n in names if n in os.environ},
        "tuned": {f"[{p.index}] {p.name}, {kernel}, {name}": tile for p, _ in profiles() for kernel in tuning.KERNELS
                  for name, tile in tuning.told(tuning.load(p, kernel), kernel).items()},
    }


