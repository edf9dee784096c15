"""Pipelines: a kernel variant ready to dispatch, and the cache of compiled ones on disk."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

from helios.backends.vulkan import shaders
from helios.backends.vulkan.device import Device
from helios.backends.vulkan.exclusive import at_exit
from helios.backends.vulkan.spirv import shared_bytes
from helios.errors import UserError
from helios.host import cache_dir

FULL_SUBGROUPS = 0x2  # a flag bit that PyPI's vulkan does not name


class Kernel:
    """One variant of one kernel: its arguments by name, and its pipeline, which Ahead makes.

    Raises UserError where it needs more than the device has.
    """

    def __init__(self, pipelines: Pipelines, name: str, defines: dict[str, Any]) -> None:
        text = shaders.source(name, defines)
        self.name, self.defines = name, defines
        self.params = shaders.signature(text, defines)
        self.packing = struct.Struct("<" + "".join(p.format for p in self.params))
        self.fresh = not shaders.cached(name, text)  # not compiled on this machine before
        self.spirv = shaders.compile(name, text)
        device = pipelines.device.profile
        for needed, what, limit in (
                (defines["WG"], "lanes in a workgroup", device.max_lanes),
                (shared_bytes(self.spirv), "bytes of memory that a workgroup shares", device.shared_bytes),
                (self.packing.size, "bytes of arguments", device.max_push_bytes)):
            if needed > limit:
                raise UserError(f"kernel {name} needs {needed:,} {what}, but {device.name} has {limit:,} at most; "
                                "choose another device")
        self.pipeline: Any = None


class Pipelines:
    """Makes kernels, each once. One layout serves them all: pointers and numbers in push constants, no descriptors."""

    def __init__(self, device: Device) -> None:
        vk, self.device = device.vk, device
        self.kernels: dict[tuple, Kernel] = {}
        self.new: list[Kernel] = []  # those without a pipeline
        self.push_bytes = device.profile.max_push_bytes
        self.layout = make_layout(device)
        p = device.profile
        key = hashlib.sha256(f"{p.name}\n{p.driver}\n{p.subgroup_size}".encode()).hexdigest()[:16]
        self.path = cache_dir() / f"pipelines-{key}.bin"
        try:
            saved = self.path.read_bytes()
        except OSError:
            saved = b""
        self.cache = vk.vkCreatePipelineCache(device.handle, vk.VkPipelineCacheCreateInfo(
            initialDataSize=len(saved), pInitialData=vk.ffi.from_buffer(saved) if saved else None), None)
        self.unsaved = False
        at_exit(self.save)

    def get(self, name: str, **defines: Any) -> Kernel:
        """Return the variant of a kernel with these #defines, made at the first call."""
        key = (name, *sorted(defines.items()))
        if key not in self.kernels:
            self.kernels[key] = Kernel(self, name, defines)
            self.new.append(self.kernels[key])
        return self.kernels[key]

    def save(self) -> None:
        """Write the driver's compiled pipelines to disk, if there are new ones."""
        if not self.unsaved:
            return
        vk, device = self.device.vk, self.device.handle
        size = vk.ffi.new("size_t*")
        vk.lib.vkGetPipelineCacheData(device, self.cache, size, vk.ffi.NULL)
        data = vk.ffi.new("char[]", size[0])
        if vk.lib.vkGetPipelineCacheData(device, self.cache, size, data) == vk.VK_SUCCESS:
            shaders.write_cache(self.path, bytes(vk.ffi.buffer(data, size[0])))
        self.unsaved = False


def make_layout(device: Device) -> Any:
    """Return the layout of all pipelines: as many bytes of push constants as the device has."""
    vk = device.vk
    return vk.vkCreatePipelineLayout(device.handle, vk.VkPipelineLayoutCreateInfo(
        pPushConstantRanges=[vk.VkPushConstantRange(
            stageFlags=vk.VK_SHADER_STAGE_COMPUTE_BIT, offset=0, size=device.profile.max_push_bytes)]), None)


def make_pipeline(device: Device, layout: Any, cache: Any, spirv: bytes) -> Any:
    """Let the driver compile a kernel, or prepare to; return the pipeline. cache: the driver's, or None."""
    vk = device.vk
    module = vk.vkCreateShaderModule(device.handle, vk.VkShaderModuleCreateInfo(codeSize=len(spirv), pCode=spirv), None)
    width = vk.VkPipelineShaderStageRequiredSubgroupSizeCreateInfo(requiredSubgroupSize=device.profile.subgroup_size)
    stage = vk.VkPipelineShaderStageCreateInfo(
        pNext=width, flags=FULL_SUBGROUPS, stage=vk.VK_SHADER_STAGE_COMPUTE_BIT, module=module, pName="main")
    info = vk.VkComputePipelineCreateInfo(stage=stage, layout=layout, basePipelineIndex=-1)
    made = vk.vkCreateComputePipelines(device.handle, cache, 1, [info], None)[0]
    vk.vkDestroyShaderModule(device.handle, module, None)
    return made
