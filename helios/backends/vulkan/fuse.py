"""Commands that become one before they are placed: less traffic, fewer barriers, the same values.

* An elementwise command that only transforms what one matmul, or one layer norm's backward pass, has just computed goes
  into that kernel's store (lib/epilogue.glsl): an activation's derivative or a residual gradient costs no pass over
  memory of its own.
* A residual sum with dropout goes into the layer norm that reads it first, and the dropout of a residual gradient into
  the layer norm's backward pass that computes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from helios.backends.vulkan.memory import Block
from helios.backends.vulkan.pipelines import Kernel, Pipelines
from helios.backends.vulkan.stream import Command, Range

# Kernels with an epilogue, and the argument that it ends in.
PRODUCERS = {"matmul_cpu": "c", "matmul_uniform": "c", "matmul": "c", "matmul_coopmat": "c",
             "layer_norm_backward": "dx"}


def fuse(commands: Sequence[Command], pipelines: Pipelines) -> list[Command]:
    """Return the same work in fewer commands, in an order that gives the same values."""
    uses: dict[Block, list[int]] = {}
    for i, command in enumerate(commands):
        for use in command.uses:
            uses.setdefault(use.block, []).append(i)
    result: list[Command | None] = list(commands)
    for i in range(len(commands)):
        for kind in (_into_producer, _into_layer_norm, _into_layer_norm_backward):
            found = kind(result, uses, i, pipelines)
            if found is not None:
                gone, at, fused = found
                result[gone], result[at] = None, fused
                for use in fused.uses:
                    uses[use.block] = [at if n == gone else n for n in uses[use.block]]
                break
    return [command for command in result if command is not None]


Found = tuple[int, int, Command] | None  # this command goes, and this one becomes that


def _into_producer(commands: Sequence[Command | None], uses: dict[Block, list[int]], i: int, pipelines: Pipelines
                   ) -> Found:
    command = commands[i]
    if command is None or not isinstance(command.kernel, Kernel) or command.kernel.name != "elementwise":
        return None
    given = _arguments(command)
    for value in (u for u in command.uses if u.access == "r"):
        block, at = value.block, uses[value.block][0]
        producer = commands[at]
        if block.chunk is not None or block.wanted() or len(uses[block]) != 2:
            continue
        if producer is None or not isinstance(producer.kernel, Kernel) or producer.name not in PRODUCERS:
            continue
        args, result = _arguments(producer), PRODUCERS[producer.name]
        if "EPILOGUE" in producer.kernel.defines or args[result].block is not block or value.size != block.size:
            continue
        # The work moves forward in time: until now nothing may touch what it writes, or write what it reads.
        if _conflict(_touched(commands[at:i]), (u for u in command.uses if u is not value)):
            continue
        swap = given["x"] is not value  # the expression's x is then the other array
        other = given["x"] if swap else given.get("y")
        if other is not None and other.offset % 8 and producer.kernel.defines.get("PAIRS"):
            continue  # y is loaded by twos as well
        args |= {result: given["o"], "y": other, "alpha": given["alpha"], "beta": given["beta"]}
        defines = {"HAS_EPILOGUE": 1, "EPILOGUE": command.kernel.defines["EXPR"],
                   "FORMULA": command.kernel.defines["FORMULA"], "SWAP": int(swap), "Y": int(other is not None)}
        return i, at, _variant(pipelines, producer.kernel, defines, args, producer.grid)
    return None


def _into_layer_norm(commands: Sequence[Command | None], uses: dict[Block, list[int]], i: int, pipelines: Pipelines
                     ) -> Found:
    norm = commands[i]
    if norm is None or not isinstance(norm.kernel, Kernel) or norm.name != "layer_norm":
        return None
    args = _arguments(norm)
    at = uses[args["x"].block][0]
    dropout = commands[at]
    if dropout is None or not isinstance(dropout.kernel, Kernel) or dropout.name != "dropout":
        return None
    given = _arguments(dropout)
    if not dropout.kernel.defines["RESIDUAL"] or given["o"].block is not args["x"].block or (
            given["rows"], given["columns"]) != (args["rows"], args["columns"]):
        return None
    # The work moves back in time: until then nothing may touch what it writes, or write what it reads; nor may the
    # norm, whose rows are computed in any order.
    if _conflict(_touched(commands[at + 1 : i]) + [u for u in norm.uses if "w" in u.access], dropout.uses):
        return None
    x = given.pop("o")
    args |= given | {"x": Range(x.block, x.offset, x.size, "rw")}
    # y may lie over h or the residual. With as many rows as columns, mean and rstd might lie over weight or bias.
    in_place = args["rows"] != args["columns"]
    defines = {"DROPOUT_BEFORE": 1, "PAIRS": norm.kernel.defines["PAIRS"] & dropout.kernel.defines["PAIRS"]}
    return at, i, _variant(pipelines, norm.kernel, defines, args, norm.grid, in_place)


def _into_layer_norm_backward(commands: Sequence[Command | None], uses: dict[Block, list[int]], i: int,
                              pipelines: Pipelines) -> Found:
    dropout = commands[i]
    if dropout is None or not isinstance(dropout.kernel, Kernel) or dropout.name != "dropout":
        return None
    given = _arguments(dropout)
    at, h = uses[given["h"].block][0], given.pop("h")
    norm = commands[at]
    if norm is None or not isinstance(norm.kernel, Kernel) or norm.name != "layer_norm_backward":
        return None
    args = _arguments(norm)
    if (dropout.kernel.defines["RESIDUAL"] or norm.kernel.defines["DROPOUT_AFTER"] or args["dx"].block is not h.block
            or (given["rows"], given["columns"]) != (args["rows"], args["columns"])):
        return None
    # The work moves forward in time: as in _into_producer, but others may read what is dropped as it was.
    between = _touched(commands[at + 1 : i])
    if _conflict(between, dropout.uses) or _conflict(norm.uses, (u for u in dropout.uses if u.block is not h.block)):
        return None
    args |= {"dropped" if name == "o" else name: value for name, value in given.items()}
    return i, at, _variant(pipelines, norm.kernel, {"DROPOUT_AFTER": 1}, args, norm.grid)


def _arguments(command: Command) -> dict[str, Any]:
    assert isinstance(command.kernel, Kernel)
    return dict(zip((p.name for p in command.kernel.params), command.args, strict=True))


def _touched(commands: Sequence[Command | None]) -> list[Range]:
    return [u for c in commands if c is not None for u in c.uses]


def _conflict(touched: Sequence[Range], uses: Iterable[Range]) -> bool:
    return any("w" in u.access + use.access and u.overlaps(use) for use in uses for u in touched)


def _variant(pipelines: Pipelines, kernel: Kernel, defines: dict[str, Any], args: dict[str, Any],
             grid: tuple[int, int], elementwise: bool = False) -> Command:
    made = pipelines.get(kernel.name, **(kernel.defines | defines))
    values = [args[p.name] for p in made.params]
    return Command(made, [v for v in values if isinstance(v, Range)], grid, values, elementwise)
