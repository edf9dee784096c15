"""The Vulkan device: instance, choice, profile, queue."""

from __future__ import annotations

import atexit
import mmap
import os
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import psutil

from helios.backends.vulkan import environment
from helios.errors import DeviceLost, NoDevice, UserError
from helios.host import cache_dir

VULKAN_1_3 = 1 << 22 | 3 << 12
TYPES = {2: "discrete", 1: "integrated", 3: "virtual", 4: "cpu", 0: "other"}  # in order of preference
# Worth knowing, not required: features by their structure, and extensions.
FEATURES = ("shaderInt64",)
FEATURES_12 = ("shaderFloat16", "shaderInt8")
EXTENSIONS = ("VK_KHR_cooperative_matrix", "VK_KHR_shader_bfloat16", "VK_EXT_memory_budget")
REQUIRED = {
    "features12": ("bufferDeviceAddress", "timelineSemaphore"),
    "features13": ("subgroupSizeControl", "computeFullSubgroups"),
}
HOST_MEMORY = "VK_EXT_external_memory_host"
COOPMAT = ("shaderFloat16", "vulkanMemoryModel")  # what kernels for matrix units need besides the extension


@dataclass(frozen=True)
class DeviceProfile:
    """What kernels are chosen by; read from the device once."""

    index: int
    name: str
    type: str  # discrete, integrated, virtual, cpu, other
    profile: str  # cpu, simt, coopmat
    driver: str
    api: str
    subgroup_size: int
    fragment: int  # side of the float16 matrices that a subgroup multiplies; 0: it multiplies none
    max_groups: int  # along x
    max_push_bytes: int
    shared_bytes: int
    timestamp_ns: float  # nanoseconds a tick
    timestamp_bits: int  # that mean something; 0 where the queue has no timestamps
    memory_bytes: int  # of the largest device-local heap
    max_allocation: int
    features: tuple[str, ...]  # what it has of those above
    missing: tuple[str, ...]  # required features that it lacks


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


@cache
def instance() -> Any:
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
    return handle


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
    atexit.register(lambda: destroy(handle, messenger, None))


def _struct(vk: Any, name: str, sType: str, next_: Any = None) -> Any:
    s = vk.ffi.new(name + "*")
    s.sType = getattr(vk, sType)
    if next_ is not None:
        s.pNext = vk.ffi.cast("void*", next_)
    return s


def _features(vk: Any, physical: Any) -> tuple[Any, Any, Any]:
    f13 = _struct(vk, "VkPhysicalDeviceVulkan13Features", "VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_3_FEATURES")
    f12 = _struct(vk, "VkPhysicalDeviceVulkan12Features", "VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES", f13)
    f2 = _struct(vk, "VkPhysicalDeviceFeatures2", "VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2", f12)
    vk.lib.vkGetPhysicalDeviceFeatures2(physical, f2)
    return f2, f12, f13


def _profile(vk: Any, index: int, physical: Any) -> DeviceProfile:
    p13 = _struct(vk, "VkPhysicalDeviceVulkan13Properties", "VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_3_PROPERTIES")
    p12 = _struct(vk, "VkPhysicalDeviceVulkan12Properties", "VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_PROPERTIES",
                  p13)
    p11 = _struct(vk, "VkPhysicalDeviceVulkan11Properties", "VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_PROPERTIES",
                  p12)
    p2 = _struct(vk, "VkPhysicalDeviceProperties2", "VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2", p11)
    vk.lib.vkGetPhysicalDeviceProperties2(physical, p2)
    base, limits, text = p2.properties, p2.properties.limits, lambda s: vk.ffi.string(s).decode()
    version = base.apiVersion
    found = {e.extensionName for e in vk.vkEnumerateDeviceExtensionProperties(physical, None)}
    missing: list[str] = []
    if version >= VULKAN_1_3:
        f2, f12, f13 = _features(vk, physical)
        missing += [n for n in REQUIRED["features12"] if not getattr(f12, n)]
        missing += [n for n in REQUIRED["features13"] if not getattr(f13, n)]
        found |= {n for n in FEATURES if getattr(f2.features, n)}
        found |= {n for n in (*REQUIRED["features12"], *FEATURES_12) if getattr(f12, n)}
        found |= {n for n in REQUIRED["features13"] if getattr(f13, n)}
    else:
        missing.append("Vulkan 1.3")
    type_, fragment = TYPES.get(base.deviceType, "other"), _fragment(vk, physical, found)
    memory = vk.vkGetPhysicalDeviceMemoryProperties(physical)
    heaps = [memory.memoryHeaps[i] for i in range(memory.memoryHeapCount)]
    return DeviceProfile(
        index=index, name=text(base.deviceName), type=type_,
        profile="cpu" if type_ == "cpu" else "coopmat" if fragment else "simt",
        driver=f"{text(p12.driverName)} {text(p12.driverInfo)}".strip(),
        api=f"{version >> 22}.{version >> 12 & 0x3FF}.{version & 0xFFF}",
        subgroup_size=p11.subgroupSize, fragment=fragment, max_groups=limits.maxComputeWorkGroupCount[0],
        max_push_bytes=limits.maxPushConstantsSize, shared_bytes=limits.maxComputeSharedMemorySize,
        timestamp_ns=limits.timestampPeriod, timestamp_bits=_compute_family(vk, physical)[1].timestampValidBits,
        memory_bytes=max((h.size for h in heaps if h.flags & vk.VK_MEMORY_HEAP_DEVICE_LOCAL_BIT), default=0),
        max_allocation=p11.maxMemoryAllocationSize,
        features=tuple(n for names in (*REQUIRED.values(), FEATURES, FEATURES_12, EXTENSIONS) for n in names
                       if n in found),
        missing=tuple(missing))


def _compute_family(vk: Any, physical: Any) -> tuple[int, Any]:
    """The first queue family that computes, and its properties."""
    families = vk.vkGetPhysicalDeviceQueueFamilyProperties(physical)
    return next((i, family) for i, family in enumerate(families) if family.queueFlags & vk.VK_QUEUE_COMPUTE_BIT)


def _fragment(vk: Any, physical: Any, found: set[str]) -> int:
    """The side of the square matrices of float16 that a subgroup multiplies into float32, 16 before 8; 0: none."""
    if not found >= {"VK_KHR_cooperative_matrix", "shaderFloat16"}:  # Vulkan 1.3 has the memory model
        return 0
    units = _struct(vk, "VkPhysicalDeviceCooperativeMatrixFeaturesKHR",
                    "VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR")
    vk.lib.vkGetPhysicalDeviceFeatures2(physical, _struct(
        vk, "VkPhysicalDeviceFeatures2", "VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2", units))
    if not units.cooperativeMatrix:
        return 0
    f16, f32 = vk.VK_COMPONENT_TYPE_FLOAT16_KHR, vk.VK_COMPONENT_TYPE_FLOAT32_KHR
    name = "vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR"  # raw: the module's own leaves sType unset
    get = vk.ffi.cast(f"PFN_{name}", vk.lib.vkGetInstanceProcAddr(instance(), name.encode()))
    count = vk.ffi.new("uint32_t*")
    get(physical, count, vk.ffi.NULL)
    properties = vk.ffi.new("VkCooperativeMatrixPropertiesKHR[]", count[0])
    for p in properties:
        p.sType = vk.VK_STRUCTURE_TYPE_COOPERATIVE_MATRIX_PROPERTIES_KHR
    get(physical, count, properties)
    shapes = {(p.MSize, p.NSize, p.KSize) for p in properties if p.scope == vk.VK_SCOPE_SUBGROUP_KHR
              and (p.AType, p.BType, p.CType, p.ResultType) == (f16, f16, f32, f32)}
    return next((side for side in (16, 8) if (side, side, side) in shapes), 0)


def profiles() -> list[tuple[DeviceProfile, Any]]:
    """Every device that the loader knows, usable or not, with its handle."""
    vk = vulkan()
    try:
        found = list(vk.vkEnumeratePhysicalDevices(instance()))
    except vk.VkError:
        found = []
    return [(_profile(vk, i, physical), physical) for i, physical in enumerate(found)]


def choose(wanted: str | None = None) -> tuple[DeviceProfile, Any]:
    """Return the device of that index or with that in its name; otherwise discrete before integrated, virtual, CPU.

    Raises UserError where `wanted` names none, NoDevice where there is none that can be used."""
    found = profiles()
    if not found:
        raise NoDevice(f"Vulkan found no device; {_advice()}")
    listing = ", ".join(f"[{p.index}] {p.name}" for p, _ in found)
    if wanted is not None:
        found = ([(p, h) for p, h in found if wanted == str(p.index)]
                 or [(p, h) for p, h in found if wanted.lower() in p.name.lower()])
        if not found:
            raise UserError(f"no Vulkan device {wanted!r}; this machine has {listing}")
    usable = [(p, h) for p, h in found if not p.missing]
    if not usable:
        first = found[0][0]
        raise NoDevice(f"no usable Vulkan device: {first.name} lacks {', '.join(first.missing)}; {_advice()}")
    order = list(TYPES.values())
    return min(usable, key=lambda found: (order.index(found[0].type), found[0].index))


class Device:
    """A logical device with one compute queue."""

    def __init__(self, wanted: str | None = None, profile: str | None = None) -> None:
        vk = self.vk = vulkan()
        self.profile, self.physical = choose(wanted)
        if profile:
            self.profile = replace(self.profile, profile=profile)
        coopmat = self.profile.profile == "coopmat" and self.profile.fragment > 0  # without, a test emulates them
        self.family, _ = _compute_family(vk, self.physical)
        f13 = _struct(vk, "VkPhysicalDeviceVulkan13Features", "VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_3_FEATURES")
        f12 = _struct(vk, "VkPhysicalDeviceVulkan12Features", "VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES",
                      f13)
        f2 = _struct(vk, "VkPhysicalDeviceFeatures2", "VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2", f12)
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
            first = _struct(vk, "VkPhysicalDeviceCooperativeMatrixFeaturesKHR",
                            "VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR", f2)
            first.cooperativeMatrix = 1
        queue = vk.VkDeviceQueueCreateInfo(queueFamilyIndex=self.family, queueCount=1, pQueuePriorities=[1.0])
        self.handle = vk.vkCreateDevice(self.physical, vk.VkDeviceCreateInfo(
            pNext=first, pQueueCreateInfos=[queue], ppEnabledExtensionNames=enabled), None)
        self.queue = vk.vkGetDeviceQueue(self.handle, self.family, 0)
        atexit.register(vk.vkDeviceWaitIdle, self.handle)

    def check(self, result: int, what: str) -> None:
        """Raise unless a raw call succeeded."""
        if result == self.vk.VK_ERROR_DEVICE_LOST:
            raise DeviceLost(f"{self.profile.name} ({self.profile.driver}) was lost in {what}")
        if result < 0:
            raise RuntimeError(f"{what} failed with Vulkan error {result} on {self.profile.name}")

    @property
    def timestamps(self) -> bool:
        """Whether its queue has any."""
        return self.profile.timestamp_bits > 0

    def milliseconds(self, stamps: np.ndarray) -> np.ndarray:
        """Return the times between timestamps, uint64 [n], as float64 [n - 1]. Their upper bits mean nothing where the
        device says so, and the others wrap around."""
        mask = np.uint64((1 << self.profile.timestamp_bits) - 1)
        return (np.diff(stamps) & mask).astype(np.float64) * self.profile.timestamp_ns / 1e6

    def available(self) -> int:
        """Bytes of device memory that can still be had."""
        if self.profile.type == "cpu":
            return min(psutil.virtual_memory().available, self.profile.memory_bytes)
        if self.has_budget:
            vk = self.vk
            budget = _struct(vk, "VkPhysicalDeviceMemoryBudgetPropertiesEXT",
                             "VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT")
            props = _struct(vk, "VkPhysicalDeviceMemoryProperties2",
                            "VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2", budget)
            vk.lib.vkGetPhysicalDeviceMemoryProperties2(self.physical, props)
            heaps = props.memoryProperties
            return max((budget.heapBudget[i] - budget.heapUsage[i] for i in range(heaps.memoryHeapCount)
                        if heaps.memoryHeaps[i].flags & vk.VK_MEMORY_HEAP_DEVICE_LOCAL_BIT), default=0)
        return self.profile.memory_bytes


def describe() -> dict[str, Any]:
    """What helios-info prints. UserError where there is no loader."""
    from helios.backends.vulkan import shaders

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
    }


