"""What is no formula: one line that points at the place."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios.errors import UserError
from helios.formula import Formula

BAD = {
    "": "column 1: it is empty",
    "  ; a=1": "column 3: an expression is missing here",
    "a*siluu(x); a=1": "column 3: unknown function 'siluu'; did you mean silu?",
    "y*x": "column 1: 'y' has no value; give it one at the end, as ;y=1",
    "alpha*x; alhpa=1": "column 1: 'alpha' has no value; .*did you mean alhpa?",
    "x*(1+": "column 3: syntax error",
    "x**(": "column 4: syntax error",
    "x*": "column 3: syntax error at the end",
    "2x": "column [12]: syntax error",
    "gelu,x*x": "column 5: a comma parts names only; put | between activations",
    "sin((x, x))": "column 5: .* cannot be part",
    "x x": "column [13]: syntax error",
    "x)+(x": "column 2: syntax error",
    "a*x": "column 1: 'a' has no value",
    "x; a=1": "column 4: the formula has no 'a'",
    "a*x; a": "column 6: expected coefficient=number, given 'a'",
    "a*x; a=": "column 8: an expression is missing here",
    "a*x; a=x": "column 8: the value of 'a' must be a number, given 'x'",
    "a*x; a=1, a=2": "column 11: 'a' has a value already",
    "a*x+b+c+d+e+f; a=1, b=1, c=1, d=1, e=1, f=1": "column 41: 'f' is one too many: a formula has at most 5 coef",
    "a*x; a=1; b=2": "column 9: ';' cannot be part",
    "a*x; a=1,": "column 10: expected coefficient=number",
    "a*x; a=1/0": "column 10: division by 0",
    "x*g*u": "column 5: x does not go with g and u",
    "silu(g)": "column 6: g needs u",
    "u**2": "column 1: u needs g",
    "g+u-u": "column 3: u falls away: the formula equals g",
    "x-x": "column 1: x falls away: the formula equals 0",
    "a; a=1": "column 1: it has no variable",
    "3": "column 1: it has no variable",
    "x**7": "column 4: power 7, expected a whole number from 0 to 4",
    "x**-1": "column 4: power -1",
    "x**0.5": "column 4: power 0.5",
    "2**x": "column 4: power x",
    "x+1/x": "column 5: division by x, expected a number",
    "a/a*x; a=1": "column 3: division by a",
    "x/(1-1)": "column 4: division by 1-1",
    "+".join(["x"] * 200): "column 151: more than 150 operations, names and numbers",
    "silu(2*" * 30 + "x" + ")" * 30: "column 1: simplified, it has more than 5000 operations",
    "silu(2*" * 6 + "x" + ")" * 6: "column 1: simplified, it has more than 100 operations",
    "x+" * 2000 + "x": "column 4001: longer than 4000 characters",
    "relu*x; relu=1": "column 1: relu is a function",
    "k*x; silu=1": "column 6: 'silu' is a function; choose another name",
    "k*x; k=1, silu=1": "column 11: 'silu' is a function; choose another name",
    "x; x=1": "column 4: 'x' is a variable; choose another name",
    "x; __a=1": "column 4: expected coefficient=number",
    "relu": "column 1: relu is a function: write relu",
    "x(2)": "column 1: unknown function 'x'",
    "relu(x, x)": "column 1: relu takes 1 argument",
    "max(x)": "column 1: max takes 2 arguments",
    "step(x)": "column 1: unknown function 'step'",
    "__import__('os')": "column 12: \"'\" cannot be part",
    "__import__(os)": "column 1: '__import__.os.' cannot be part of a formula",
    "__name__*x": "column 1: '__name__' cannot be part",
    "x.real": "column 1: 'x.real' cannot be part",
    "x.__class__": "column 1: 'x.__class__' cannot be part",
    "relu(x=1)": "column 7: '=' cannot be part",
    "relu(*x)": "column 6: ",
    "lambda x": "column [1-9]: syntax error",
    "lambda: x": "column 7: ':' cannot be part",
    "x if x else 1": "column 1: 'x if x else 1' cannot be part",
    "x or 1": "column 1: 'x or 1' cannot be part",
    "not x": "column 1: 'not x' cannot be part",
    "(x, x)": "column 1: ",
    "()": "column 1: ",
    "x//2": "column 1: 'x//2' cannot be part",
    "x^2": "column 2: '\\^' cannot be part of a formula",
    "x # no": "column 3: '#' cannot be part",
    "α*x": "column 1: 'α' cannot be part",
    "x²": "column 2: '²' cannot be part",
    "x*\0": "column [34]: ",
    "True*x": "column 1: 'True' cannot be part",
    "1j*x": "column 1: '1j' cannot be part",
    "x*1e999": "column 3: 1e999 is not a number between",
    "x*1e30": "column 3: 1e30 is not a number between",
    "x*1e-999": "column 3: 1e-999 is not a number between",
    "x*sigmoid(-100)": "column 1: its numbers multiply to 3.7.*e-44, expected",
    "x*sigmoid(-700)": "column 1: its numbers come to one that is not between",
    "nan*x": "column 1: 'nan' has no value",
    "a*x; a=1e999": "column 8: 1e999 is not a number between",
    "x*1e17*1e17": "its numbers multiply to 1e\\+34",
    "(((x**4)**4)**4)**4": "column 1: simplified, it has more than 100 operations",
    "(" * 20 + "x" + "**4)" * 20: "column 1: the powers of x multiply to more than 1000",
    "(" * 400 + "x" + ")" * 400: "column [0-9]+: ",
    "-" * 900 + "x": "column [0-9]+: ",
    "9" * 900 + "*x": "column 1: ",
}


@pytest.mark.parametrize("text", BAD, ids=lambda text: repr(text[:20]))
def test_what_is_no_formula(text: str) -> None:
    with pytest.raises(UserError, match=BAD[text]) as caught:
        Formula.parse(text)
    message = str(caught.value)
    assert message.startswith("formula") and len(message.splitlines()) == 1 and len(message) < 300


@settings(max_examples=300, deadline=None, derandomize=True)
@given(text=st.text(st.sampled_from("xgua1.0e+-*/(),;= silutanh\n\t'_"), max_size=25) | st.text(max_size=10))
def test_any_text_is_a_formula_or_an_error_of_one_line(text: str) -> None:
    try:
        formula = Formula.parse(text)
    except UserError as error:
        assert len(str(error).splitlines()) == 1 and len(str(error)) < 300
    else:
        assert np.isfinite(formula.value(*np.ones((len(formula.parameters), 1), np.float32))).all()
