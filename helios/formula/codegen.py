"""Code of normal forms, with common parts computed once, in GLSL, numpy and PyTorch.

Nothing overflows for inputs up to ±1e4 and coefficients up to 1e3: a part that may pass float32's range there is
clamped to ±3e38, so that no 0·∞ or ∞-∞ arises.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from helios.formula.expression import FUNCTIONS, Node, number
from helios.formula.normal import expanded, scaled, split

REACH, COEFFICIENT, BIG = 1e4, 1e3, 3e38  # bounds of |x|, of a coefficient, and of what float32 holds

# operator → its text, how tightly it holds together (1 a sum, 2 a product, 4 an atom), how tightly its operands must
SYNTAX = {"+": ("{0} + {1}", 1, (1, 2)), "-": ("{0} - {1}", 1, (1, 2)), "*": ("{0} * {1}", 2, (2, 3)),
          "neg": ("-{0}", 1, (3,))}


class Lowering:
    """Makes operations of at most two operands of normal forms, none that float32 could not hold.

    bounds: of |value|, of each node that it made. made: of which normal forms.
    """

    def __init__(self, coefficients: Mapping[str, float]) -> None:
        self.coefficients, self.bounds, self.made = coefficients, dict[Node, float](), dict[Node, Node]()

    def __call__(self, e: Node) -> Node:
        if e not in self.made:
            self.made[e] = self._lowered(e)
        return self.made[e]

    def _lowered(self, e: Node) -> Node:
        if e.op == "number":
            self.bounds[e] = abs(float(e.args[0]))
            return e
        if e.op == "name":
            self.bounds[e] = COEFFICIENT if e.args[0] in self.coefficients else REACH
            return e
        if e.op == "+":
            found = None
            for k, rest in sorted(map(split, e.args), key=lambda term: term[0] < 0):
                part = self(scaled(abs(k), rest))
                if found is None:
                    found = part if k > 0 else self.make("neg", part)
                else:
                    found = self.make("+" if k > 0 else "-", found, part)
            assert found is not None
            return found
        if e.op == "*":
            k, rest = split(e)
            # coefficients late, that more of the products have a beginning in common
            factors = sorted(rest.args if rest.op == "*" else (rest,), key=lambda f: f.names <= set(self.coefficients))
            found = self(factors[0])
            for factor in factors[1:]:
                found = self.make("*", found, self(factor))
            return found if k == 1 else self.make("neg", found) if k == -1 else self.make("*", found, self(number(k)))
        if e.op == "**":
            return self._power(self(e.args[0]), int(e.args[1].args[0]))
        if FUNCTIONS[e.op].means:
            return self(expanded(e))
        return self.make(e.op, *map(self, e.args))

    def _power(self, base: Node, n: int) -> Node:
        if n == 1:
            return base
        half = self._power(base, n // 2)
        square = self.make("*", half, half)
        return self.make("*", square, base) if n % 2 else square

    def make(self, op: str, *args: Node) -> Node:
        """Return an operation, clamped where it may come to more than float32 holds."""
        node, bounds = Node(op, args), [self.bounds[arg] for arg in args]
        if op == "*":
            bound = bounds[0] * bounds[1]
        elif op in SYNTAX:
            bound = sum(bounds)
        else:
            bound = 1.0 if FUNCTIONS[op].bounded else min(sum(bounds) + 1, BIG)
        self.bounds[node] = bound
        return self.make("saturate", node) if bound > BIG else node


def write(language: str, results: Sequence[Node], names: Mapping[str, str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Return temporaries, for operations whose value is used twice, and the results."""
    syntax = lambda op: SYNTAX.get(op) or (getattr(FUNCTIONS[op], language), 4, (0, 0))
    uses: Counter[Node] = Counter(results)
    todo, seen = list(results), set[Node]()
    while todo:
        if (node := todo.pop()) in seen:
            continue
        seen.add(node)
        for i, operand in enumerate(node.operands):
            uses[operand] += syntax(node.op)[0].count(f"{{{i}}}")
            todo.append(operand)
    temporaries: list[tuple[str, str]] = []
    done: dict[Node, tuple[str, int]] = {}

    def show(node: Node, least: int = 0) -> str:
        if node not in done:
            if node.op == "name":
                done[node] = names[node.args[0]], 4
            elif node.op == "number":
                value = float(node.args[0])
                done[node] = repr(max(-BIG, min(value, BIG))), 4 if value >= 0 else 1
            else:
                form, level, needed = syntax(node.op)
                text = form.format(*(show(n, need) for n, need in zip(node.args, needed, strict=False)))
                done[node] = text, level
                if uses[node] > 1:
                    temporaries.append((f"t{len(temporaries)}", text))
                    done[node] = temporaries[-1][0], 4
        text, level = done[node]
        if language == "torch" and node.op == "number" and least == 0:  # its maximum and minimum take no numbers
            return f"{next(iter(names.values()))}.new_tensor({text})"
        return text if level >= least else f"({text})"

    shown = [show(result, 1) for result in results]
    return temporaries, shown
