"""Activations as formulas."""

from helios.formula.expression import Node
from helios.formula.formula import Formula, expression

__all__ = ["Formula", "Node", "expression"]
