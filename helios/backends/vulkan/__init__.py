"""Vulkan: device choice, memory, shaders, stream and the primitives built on them."""
