"""Kernels compiled ahead, by several threads.

lavapipe compiles a pipeline when it first runs, one after another. Here each thread has a device of its own, on which
it runs pipelines over no workgroups; what that compiles is then in the driver's cache on disk, from which the device
that computes takes it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from helios.backends.vulkan.device import Device
from helios.backends.vulkan.pipelines import make_layout, make_pipeline

LEAST = 3  # kernels from which on it pays


class Ahead:
    """Compiles kernels for a device, where that is lavapipe with a cache on disk and there are cores for it."""

    def __init__(self, device: Device) -> None:
        lavapipe = device.profile.name.startswith("llvmpipe") and not os.environ.get("MESA_SHADER_CACHE_DISABLE")
        self.wanted = str(device.profile.index)
        self.threads = int(os.environ.get("LP_NUM_THREADS") or len(os.sched_getaffinity(0))) if lavapipe else 1
        self.idle: list[Compiler] = []

    def compile(self, kernels: Sequence[bytes]) -> None:
        """Compile kernels, SPIR-V each, and wait for that; leave it to the device where it does not pay."""
        if self.threads > 1 and len(kernels) >= LEAST:
            with ThreadPoolExecutor(min(self.threads, len(kernels))) as pool:
                list(pool.map(self._compile, kernels))

    def _compile(self, spirv: bytes) -> None:
        with self._compiler() as compiler:
            compiler.run(spirv)

    @contextmanager
    def _compiler(self) -> Iterator[Compiler]:
        compiler = self.idle.pop() if self.idle else Compiler(self.wanted)
        try:
            yield compiler
        finally:
            self.idle.append(compiler)


class Compiler:
    """A device that computes nothing."""

    def __init__(self, wanted: str) -> None:
        self.device = Device(wanted)
        vk, handle = self.device.vk, self.device.handle
        self.layout = make_layout(self.device)
        pool = vk.vkCreateCommandPool(handle, vk.VkCommandPoolCreateInfo(
            flags=vk.VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT, queueFamilyIndex=self.device.family), None)
        self.buffer = vk.vkAllocateCommandBuffers(handle, vk.VkCommandBufferAllocateInfo(
            commandPool=pool, level=vk.VK_COMMAND_BUFFER_LEVEL_PRIMARY, commandBufferCount=1))[0]

    def run(self, spirv: bytes) -> None:
        """Compile a kernel."""
        vk, device, buffer = self.device.vk, self.device, self.buffer
        pipeline = make_pipeline(device, self.layout, None, spirv)
        size = device.profile.max_push_bytes
        vk.vkBeginCommandBuffer(buffer, vk.VkCommandBufferBeginInfo())
        vk.vkCmdBindPipeline(buffer, vk.VK_PIPELINE_BIND_POINT_COMPUTE, pipeline)
        vk.lib.vkCmdPushConstants(buffer, self.layout, vk.VK_SHADER_STAGE_COMPUTE_BIT, 0, size,
                                  vk.ffi.new("char[]", size))
        vk.vkCmdDispatch(buffer, 0, 1, 1)
        vk.vkEndCommandBuffer(buffer)
        info = vk.ffi.new("VkSubmitInfo*")
        info.sType, info.commandBufferCount = vk.VK_STRUCTURE_TYPE_SUBMIT_INFO, 1
        info.pCommandBuffers = buffers = vk.ffi.new("VkCommandBuffer[]", [buffer])
        device.check(vk.lib.vkQueueSubmit(device.queue, 1, info, vk.ffi.NULL), "a submit")
        device.check(vk.lib.vkQueueWaitIdle(device.queue), "waiting")
        del buffers  # until here it was needed
        vk.vkDestroyPipeline(device.handle, pipeline, None)


