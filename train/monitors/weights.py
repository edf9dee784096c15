"""Measures of a model: entropy and rank of its matrices, gradient norms of its layers, mutual information."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean

import numpy as np

SIDE = 64  # of a sampled sub-matrix, at most
BINS, PER_RMS = 32, 8  # bins of the histogram of |w|; bins in one root mean square
ROWS = 1024  # from which a principal component is taken
MI_BINS, FILL = 30, 5  # bins of a joint histogram along each axis; values that a cell should have on average


def sample(w: np.ndarray) -> np.ndarray:
    """Return a sub-matrix of [m, n], at most SIDE × SIDE, of evenly spaced rows and columns."""
    rows, columns = (np.arange(min(size, SIDE)) * size // min(size, SIDE) for size in w.shape)
    return w[np.ix_(rows, columns)]


def _scaled(w: np.ndarray) -> np.ndarray | None:
    """Return w in float64, over its largest magnitude if that is finite, lest squares overflow; None if all zero."""
    w = np.asarray(w, np.float64)
    peak = np.abs(w).max(initial=0.0)
    if not peak:
        return None
    return w / peak if np.isfinite(peak) else w


def _entropy(p: np.ndarray) -> float:
    """Return the Shannon entropy in nats of shares that sum to 1."""
    p = p[p > 0]
    return float(np.sum(p * np.log(1 / p)))


def weight_entropy(w: np.ndarray) -> float:
    """Return the Shannon entropy in bits of the histogram of |w|; nan if w is not finite, 0 if it is all zero.

    There are BINS bins, each 1/PER_RMS of the root mean square of w wide, the last one open, so the scale of w does not
    count. Normally distributed weights give 4.0, weights of one magnitude 0; the most is 5.
    """
    scaled = _scaled(w)
    if scaled is None:
        return 0.0
    if not np.isfinite(scaled).all():
        return math.nan
    rms = math.sqrt(np.mean(scaled * scaled))
    counts = np.bincount(np.minimum(np.abs(scaled) / rms * PER_RMS, BINS - 1).astype(np.int64).ravel())
    return _entropy(counts / scaled.size) / math.log(2)


def effective_rank(w: np.ndarray) -> float:
    """Return exp of the Shannon entropy of the normalised singular values of [m, n] (Roy & Vetterli 2007).

    It is 1 to min(m, n), 0 if w is all zero, nan if it is not finite. Singular values are roots of the eigenvalues of
    the smaller Gram matrix, whose rounding errors are up to max(m, n)·eps of the largest. Eigenvalues as small as that
    are taken as zero, for their roots would be singular values of 1e-7 of the largest.
    """
    scaled = _scaled(w)
    if scaled is None:
        return 0.0
    if not np.isfinite(scaled).all():
        return math.nan
    gram = scaled @ scaled.T if scaled.shape[0] <= scaled.shape[1] else scaled.T @ scaled
    squares = np.linalg.eigvalsh(gram)
    squares[squares < 4 * max(scaled.shape) * np.finfo(np.float64).eps * squares[-1]] = 0.0
    singular = np.sqrt(squares)
    return math.exp(_entropy(singular / singular.sum()))


def weight_metrics(weights: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the means of weight_entropy and effective_rank over samples of all matrices, without gains and biases."""
    samples = [sample(w) for w in weights.values() if w.ndim == 2]
    return {"weight_entropy": fmean(map(weight_entropy, samples)),
            "effective_rank": fmean(map(effective_rank, samples))}


LAYERS = {"wte": "embedding", "wpe": "embedding", "ln_f": "head", "lm_head": "head"}


def layer_norms(grads: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the L2 norm of the gradient of each layer (embedding, block0, …, head), nan if it is not finite.
    grads: by the names of GPT's parameters. Raises ValueError for a name that belongs to no layer."""
    squares: dict[str, float] = {}
    for name, grad in grads.items():
        first, *rest = name.split(".")
        layer = f"block{rest[0]}" if first == "blocks" else LAYERS.get(first)
        if layer is None:
            raise ValueError(f"layer_norms: {name!r} is no parameter of a GPT")
        values = np.asarray(grad, np.float64).ravel()
        squares[layer] = squares.get(layer, 0.0) + float(values @ values)
    return {layer: math.sqrt(s) if math.isfinite(s) else math.nan for layer, s in squares.items()}


def mutual_information(x: np.ndarray, y: np.ndarray, bins: int = MI_BINS) -> float:
    """Return the mutual information in bits, at least 0, of two series [N]; nan if they are not finite.

    It is estimated from a histogram of bins × bins of equal width. The plain estimate is too high by about
    (cells - rows - columns + 1) / (2N ln 2), where only those that are not empty count; this is subtracted (Miller &
    Madow 1955).
    """
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return math.nan
    joint = np.histogram2d(x, y, bins)[0]
    n = joint.sum()
    rows, columns = joint.sum(1), joint.sum(0)
    nats = _entropy(rows / n) + _entropy(columns / n) - _entropy(joint.ravel() / n)
    bias = (np.count_nonzero(joint) - np.count_nonzero(rows) - np.count_nonzero(columns) + 1) / (2 * n)
    return max(0.0, float(nats - bias) / math.log(2))


def _principal(x: np.ndarray) -> np.ndarray:
    """Return the place of each row of [N, d] along the first principal component, up to sign and scale, as [N].
    The component is that of at most ROWS evenly spaced rows, which bounds its cost."""
    x = np.asarray(x, np.float64)
    if not np.isfinite(x).all():
        return np.full(len(x), np.nan)
    scaled = _scaled(x - x.mean(0))
    if scaled is None:
        return np.zeros(len(x))
    part = scaled[::-(-len(scaled) // ROWS)]
    if part.shape[0] <= part.shape[1]:
        return scaled @ (part.T @ np.linalg.eigh(part @ part.T)[1][:, -1])
    return scaled @ np.linalg.eigh(part.T @ part)[1][:, -1]


def mi_profile(inputs: np.ndarray, representation: np.ndarray, outputs: np.ndarray) -> dict[str, float | None]:
    """Return the mutual information in bits of three arrays [N, d], each reduced to its first principal component.

    mi_compression is mi_repr_output over mi_input_repr, None where that is 0. With N below FILL·MI_BINS² the
    histograms are coarser, since the correction of the bias fails where most cells are empty.
    """
    bins = max(2, min(MI_BINS, math.isqrt(len(inputs) // FILL)))
    x, r, y = map(_principal, (inputs, representation, outputs))
    first, second = mutual_information(x, r, bins), mutual_information(r, y, bins)
    return {"mi_input_repr": first, "mi_repr_output": second, "mi_compression": second / first if first else None}
