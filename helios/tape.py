"""The tape: what was computed, in order, and the walk back over it.

An operation on tensors that need gradients appends a Node. `backward` visits the nodes that the loss depends on from
the last to the first, asks the gradient table for each one's rule, and lets go of each node's values once used.
"""

from __future__ import annotations

import itertools
from typing import Any

from helios.backends.backend import Array
from helios.gradients import GRADIENTS

_order = itertools.count()


class Node:
    """One recorded operation: input tensors, the arrays its rule reads, its attributes."""

    __slots__ = ("attrs", "inputs", "op", "order", "outputs", "tensors", "used")

    def __init__(self, op: str, tensors: tuple[Any, ...], inputs: tuple[Array, ...], outputs: tuple[Array, ...],
                 attrs: dict[str, Any]) -> None:
        self.op, self.tensors, self.inputs, self.outputs, self.attrs = op, tensors, inputs, outputs, attrs
        self.order = next(_order)
        self.used = False

    def release(self) -> None:
        """Let go of all values."""
        self.tensors = self.inputs = self.outputs = ()
        self.used = True


def backward(loss: Any, scale: Any = None) -> None:
    """Add d(loss)/d(leaf), times `scale` (a tensor of shape ()) where given, to the grad of every leaf that requires
    one.

    Raises RuntimeError when run twice, ValueError where `loss` or `scale` is no scalar.
    """
    if loss.shape != ():
        raise ValueError(f"backward() starts from a scalar; this tensor has shape {loss.shape}")
    if loss.node is None:
        raise RuntimeError("backward(): nothing that this tensor was computed from requires a gradient")
    if scale is not None and (scale.shape != () or scale.backend is not loss.backend):
        raise ValueError(f"backward(): scale must be a scalar on {loss.backend.name}; this one has shape {scale.shape}")
    be = loss.backend
    be.mark("bwd")
    grads: dict[int, Array] = {id(loss.node): be.array(be.float_dtype.type(1)) if scale is None else scale.data}
    for node in _nodes(loss.node):
        g = grads.pop(id(node))
        found = GRADIENTS[node.op](be, node, g)
        for tensor, grad in zip(node.tensors, found, strict=True):
            if tensor is None or grad is None or not tensor.requires_grad:
                continue
            if tensor.node is None:
                tensor.accumulate(grad, take=grad is not g and sum(other is grad for other in found) == 1)
            elif (key := id(tensor.node)) in grads:
                grads[key] = be.axpby(grads[key], grad, 1.0, 1.0)
            else:
                grads[key] = grad
        node.release()


def _nodes(last: Node) -> list[Node]:
    """The nodes that `last` depends on, latest first."""
    found, stack = {id(last): last}, [last]
    while stack:
        node = stack.pop()
        if node.used:
            raise RuntimeError(f"backward(): the tape was already run (at {node.op!r}); compute the loss again")
        for tensor in node.tensors:
            if tensor is not None and tensor.node is not None and id(tensor.node) not in found:
                found[id(tensor.node)] = tensor.node
                stack.append(tensor.node)
    return sorted(found.values(), key=lambda n: -n.order)
