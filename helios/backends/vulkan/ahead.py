"""The pipelines of new kernels, made by several threads before anything runs.

lavapipe compiles a pipeline only when it first runs, one after another. So there each thread also has a device of its
own, on which it runs the pipelines that are new to this machine, over no workgroups. What that compiles is then in the
driver's cache on disk, from which the device that computes takes it.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from helios.backends.vulkan.device import Device
from helios.backends.vulkan.pipelines import Kernel, Pipelines, make_layout, make_pipeline
from helios.errors import DeviceLost, NoDevice

LEAST = 3  # kernels new to this machine from which on devices of their own pay


class Ahead:
    """Makes the pipelines of a device, with as many threads as there are cores, or lavapipe is told to use."""

    def __init__(self, pipelines: Pipelines) -> None:
        self.pipelines, profile = pipelines, pipelines.device.profile
        lavapipe, told = profile.name.startswith("llvmpipe"), os.environ.get("LP_NUM_THREADS", "")
        self.threads = max(1, int(told)) if lavapipe and told.isdecimal() else len(os.sched_getaffinity(0))
        self.late = lavapipe and not os.environ.get("MESA_SHADER_CACHE_DISABLE")
        self.idle: list[Compiler] = []

    def prepare(self) -> None:
        """Make the pipelines that are not there yet, and wait for that."""
        new = [kernel for kernel in self.pipelines.new if kernel.pipeline is None]
        if not new:
            return
        self.pipelines.unsaved = True
        ahead = self.late and self.threads > 1 and sum(kernel.fresh for kernel in new) >= LEAST
        if len(new) == 1:
            self._make(new[0], ahead)
        else:
            with ThreadPoolExecutor(self.threads) as pool:
                list(pool.map(lambda kernel: self._make(kernel, ahead), new))
        self.pipelines.new = []

    def _make(self, kernel: Kernel, ahead: bool) -> None:
        own = self.pipelines
        if ahead and kernel.fresh:
            with suppress(NoDevice, DeviceLost, RuntimeError, own.device.vk.VkError):  # then the device compiles it
                compiler = self.idle.pop() if self.idle else Compiler(str(own.device.profile.index))
                compiler.run(kernel.spirv)
                self.idle.append(compiler)
        kernel.pipeline = make_pipeline(own.device, own.layout, own.cache, kernel.spirv)


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


