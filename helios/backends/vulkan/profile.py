"""What a device can do, read once from its driver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

VULKAN_1_3 = 1 << 22 | 3 << 12
TYPES = {2: "discrete", 1: "integrated", 3: "virtual", 4: "cpu", 0: "other"}  # in order of preference
COMPUTE = 0x20  # VK_SHADER_STAGE_COMPUTE_BIT
REQUIRED = {
    "features12": ("bufferDeviceAddress", "timelineSemaphore"),
    "features13": ("subgroupSizeControl", "computeFullSubgroups"),
}
# Operations within a subgroup, with their bits: those that kernels need everywhere, and one that some have a use for.
SUBGROUP = {"subgroup basic": 1, "subgroup arithmetic": 4, "subgroup ballot": 8}
CLUSTERED = {"subgroup clustered": 64}
LANES = 4, 64  # of the subgroups that kernels are written for
# Worth knowing, not required: features by their structure, and extensions.
FEATURES = ("shaderInt64",)
FEATURES_12 = ("shaderFloat16", "shaderInt8")
EXTENSIONS = ("VK_KHR_cooperative_matrix", "VK_KHR_shader_bfloat16", "VK_EXT_memory_budget")


@dataclass(frozen=True)
class DeviceProfile:
    """What kernels are chosen by."""

    index: int
    name: str
    type: str  # discrete, integrated, virtual, cpu, other
    profile: str  # cpu, simt, coopmat
    driver: str
    api: str
    subgroup_size: int
    fragment: int  # side of the float16 matrices that a subgroup multiplies; 0: it multiplies none
    max_groups: int  # workgroups along x
    max_lanes: int  # of a workgroup
    max_push_bytes: int
    shared_bytes: int  # that a workgroup can have
    timestamp_ns: float  # nanoseconds a tick
    timestamp_bits: int  # that mean something; 0 where the queue has no timestamps
    memory_bytes: int  # of the largest device-local heap
    max_allocation: int
    features: tuple[str, ...]  # what it has of those above
    missing: tuple[str, ...]  # required features that it lacks


def read_profile(vk: Any, instance: Any, index: int, physical: Any) -> DeviceProfile:
    """Ask the driver about a physical device."""
    p13 = struct(vk, "VkPhysicalDeviceVulkan13Properties", "VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_3_PROPERTIES")
    p12 = struct(vk, "VkPhysicalDeviceVulkan12Properties", "VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_PROPERTIES",
                 p13)
    p11 = struct(vk, "VkPhysicalDeviceVulkan11Properties", "VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_PROPERTIES",
                 p12)
    p2 = struct(vk, "VkPhysicalDeviceProperties2", "VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2", p11)
    vk.lib.vkGetPhysicalDeviceProperties2(physical, p2)
    base, limits, text = p2.properties, p2.properties.limits, lambda s: vk.ffi.string(s).decode()
    version, size = base.apiVersion, subgroup_size(p11, p13)
    found = {e.extensionName for e in vk.vkEnumerateDeviceExtensionProperties(physical, None)}
    found |= {name for name, bit in (SUBGROUP | CLUSTERED).items() if p11.subgroupSupportedOperations & bit}
    missing = ["Vulkan 1.3"]
    if version >= VULKAN_1_3:
        f2, f12, f13 = _features(vk, physical)
        found |= {n for n in FEATURES if getattr(f2.features, n)}
        found |= {n for n in (*REQUIRED["features12"], *FEATURES_12) if getattr(f12, n)}
        found |= {n for n in REQUIRED["features13"] if getattr(f13, n)}
        missing = [n for n in (*REQUIRED["features12"], *REQUIRED["features13"], *SUBGROUP) if n not in found]
        if not p11.subgroupSupportedStages & p13.requiredSubgroupSizeStages & COMPUTE:
            missing.append("subgroups of a required size in compute shaders")
        if not size:
            missing.append(f"subgroups of {LANES[0]} to {LANES[1]} lanes")
    type_, fragment = TYPES.get(base.deviceType, "other"), _fragment(vk, instance, physical, found)
    memory = vk.vkGetPhysicalDeviceMemoryProperties(physical)
    heaps = [memory.memoryHeaps[i] for i in range(memory.memoryHeapCount)]
    return DeviceProfile(
        index=index, name=text(base.deviceName), type=type_,
        profile="cpu" if type_ == "cpu" else "coopmat" if fragment else "simt",
        driver=f"{text(p12.driverName)} {text(p12.driverInfo)}".strip(),
        api=f"{version >> 22}.{version >> 12 & 0x3FF}.{version & 0xFFF}",
        subgroup_size=size, fragment=fragment, max_groups=limits.maxComputeWorkGroupCount[0],
        max_lanes=min(limits.maxComputeWorkGroupInvocations, limits.maxComputeWorkGroupSize[0]),
        max_push_bytes=limits.maxPushConstantsSize, shared_bytes=limits.maxComputeSharedMemorySize,
        timestamp_ns=limits.timestampPeriod, timestamp_bits=compute_family(vk, physical)[1].timestampValidBits,
        memory_bytes=max((h.size for h in heaps if h.flags & vk.VK_MEMORY_HEAP_DEVICE_LOCAL_BIT), default=0),
        max_allocation=p11.maxMemoryAllocationSize,
        features=tuple(n for names in (*REQUIRED.values(), SUBGROUP, CLUSTERED, FEATURES, FEATURES_12, EXTENSIONS)
                       for n in names if n in found),
        missing=tuple(missing))


def subgroup_size(p11: Any, p13: Any) -> int:
    """Return the device's preferred size, or the nearest that kernels are written for; 0 where it has none such."""
    least, most = LANES
    size = min(max(p11.subgroupSize, least), most)
    return size if p13.minSubgroupSize <= size <= p13.maxSubgroupSize or size == p11.subgroupSize else 0


def struct(vk: Any, name: str, sType: str, next_: Any = None) -> Any:
    """Return a new structure of the driver's interface, chained to `next_`."""
    s = vk.ffi.new(name + "*")
    s.sType = getattr(vk, sType)
    if next_ is not None:
        s.pNext = vk.ffi.cast("void*", next_)
    return s


def compute_family(vk: Any, physical: Any) -> tuple[int, Any]:
    """Return the first queue family that computes, and its properties."""
    families = vk.vkGetPhysicalDeviceQueueFamilyProperties(physical)
    return next((i, family) for i, family in enumerate(families) if family.queueFlags & vk.VK_QUEUE_COMPUTE_BIT)


def _features(vk: Any, physical: Any) -> tuple[Any, Any, Any]:
    f13 = struct(vk, "VkPhysicalDeviceVulkan13Features", "VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_3_FEATURES")
    f12 = struct(vk, "VkPhysicalDeviceVulkan12Features", "VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES", f13)
    f2 = struct(vk, "VkPhysicalDeviceFeatures2", "VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2", f12)
    vk.lib.vkGetPhysicalDeviceFeatures2(physical, f2)
    return f2, f12, f13


def _fragment(vk: Any, instance: Any, physical: Any, found: set[str]) -> int:
    """The side of the square matrices of float16 that a subgroup multiplies into float32, 16 before 8; 0: none."""
    if not found >= {"VK_KHR_cooperative_matrix", "shaderFloat16"}:  # Vulkan 1.3 has the memory model
        return 0
    units = struct(vk, "VkPhysicalDeviceCooperativeMatrixFeaturesKHR",
                   "VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR")
    vk.lib.vkGetPhysicalDeviceFeatures2(physical, struct(
        vk, "VkPhysicalDeviceFeatures2", "VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2", units))
    if not units.cooperativeMatrix:
        return 0
    f16, f32 = vk.VK_COMPONENT_TYPE_FLOAT16_KHR, vk.VK_COMPONENT_TYPE_FLOAT32_KHR
    name = "vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR"  # raw: the module's own leaves sType unset
    get = vk.ffi.cast(f"PFN_{name}", vk.lib.vkGetInstanceProcAddr(instance, name.encode()))
    count = vk.ffi.new("uint32_t*")
    get(physical, count, vk.ffi.NULL)
    properties = vk.ffi.new("VkCooperativeMatrixPropertiesKHR[]", count[0])
    for p in properties:
        p.sType = vk.VK_STRUCTURE_TYPE_COOPERATIVE_MATRIX_PROPERTIES_KHR
    get(physical, count, properties)
    shapes = {(p.MSize, p.NSize, p.KSize) for p in properties if p.scope == vk.VK_SCOPE_SUBGROUP_KHR
              and (p.AType, p.BType, p.CType, p.ResultType) == (f16, f16, f32, f32)}
    return next((side for side in (16, 8) if (side, side, side) in shapes), 0)
