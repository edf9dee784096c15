"""Reading SPIR-V, the compiled form of kernels."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterator

TYPE_BOOL, TYPE_INT, TYPE_FLOAT, TYPE_VECTOR, TYPE_ARRAY, TYPE_STRUCT, TYPE_POINTER = 20, 21, 22, 23, 28, 30, 32
CONSTANT, VARIABLE, WORKGROUP = 43, 59, 4


def instructions(spirv: bytes) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield each instruction's opcode and operands."""
    words = struct.unpack(f"<{len(spirv) // 4}I", spirv)
    at = 5  # after the header
    while at < len(words):
        count, opcode = words[at] >> 16, words[at] & 0xFFFF
        yield opcode, words[at + 1 : at + count]
        at += count


def shared_bytes(spirv: bytes) -> int:
    """Return how many bytes of shared memory a workgroup takes: the sizes of its Workgroup variables."""
    sizes = defaultdict[int, int](int)  # of a type; of a pointer's, that of what it points to
    constants: dict[int, int] = {}
    total = 0
    for opcode, args in instructions(spirv):
        if opcode == TYPE_BOOL:
            sizes[args[0]] = 4
        elif opcode in (TYPE_INT, TYPE_FLOAT):
            sizes[args[0]] = args[1] // 8
        elif opcode == TYPE_VECTOR:
            sizes[args[0]] = sizes[args[1]] * args[2]
        elif opcode == TYPE_ARRAY:
            sizes[args[0]] = sizes[args[1]] * constants[args[2]]
        elif opcode == TYPE_STRUCT:
            sizes[args[0]] = sum(sizes[member] for member in args[1:])
        elif opcode == TYPE_POINTER:
            sizes[args[0]] = sizes[args[2]]
        elif opcode == CONSTANT:
            constants[args[1]] = args[2]
        elif opcode == VARIABLE and args[2] == WORKGROUP:
            total += sizes[args[0]]
    return total
