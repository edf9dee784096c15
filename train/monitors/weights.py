"""What the weights look like: entropy and rank of the matrices, gradient norms of the layers, mutual information."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean

import numpy as np

SIDE = 64  # of the sampled sub-matrix
BINS, PER_RMS = 32, 8  # of the histogram of |w|; bins in one root mean square
ROWS = 1024  # that a principal component is taken from
MI_BINS, FILL = 30, 5  # of a histogram in both directions; values that a cell should have on the average


def sample(w: np.ndarray) -> np.ndarray:
    """A sub-matrix of [m, n], at most SIDE × SIDE, of evenly spaced rows and columns, always the same."""
    rows, columns = (np.arange(min(size, SIDE)) * size // min(size, SIDE) for size in w.shape)
    return w[np.ix_(rows, columns)]


def _scaled(w: np.ndarray) -> np.ndarray | None:
    """In float64, a finite largest magnitude made 1, so that no square overflows; None where all are zero."""
    w = np.asarray(w, np.float64)
    peak = np.abs(w).max(initial=0.0)
    if not peak:
        return None
    return w / peak if np.isfinite(peak) else w


def _entropy(p: np.ndarray) -> float:
    """In nats, of shares that sum to 1."""
    p = p[p > 0]
    return float(np.sum(p * np.log(1 / p)))


def weight_entropy(w: np.ndarray) -> float:
    """Shannon entropy in bits of the histogram of |w|; nan if w is not finite, 0 if it is all zero.

    BINS bins, each 1/PER_RMS of the root mean square of w wide, the last one open: multiplying w by a constant changes
    nothing. Normally distributed weights give 4.0, weights of one magnitude 0; the most is 5.
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
    """exp of the Shannon entropy of the normalised singular values of [m, n] (Roy & Vetterli 2007): 1 to min(m, n).

    0 if w is all zero, nan if it is not finite. The singular values are roots of the eigenvalues of the smaller Gram
    matrix, whose rounding errors are up to max(m, n)·eps of the largest. What is that small is taken as zero; the root
    would make singular values of 1e-7 of it.
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
    """weight_entropy and effective_rank, each the mean over samples of the matrices; gains and biases are left out."""
    samples = [sample(w) for w in weights.values() if w.ndim == 2]
    return {"weight_entropy": fmean(map(weight_entropy, samples)),
            "effective_rank": fmean(map(effective_rank, samples))}


LAYERS = {"wte": "embedding", "wpe": "embedding", "ln_f": "head", "lm_head": "head"}


def layer_norms(grads: Mapping[str, np.ndarray], scale: float = 1.0) -> dict[str, float]:
    """scale × the L2 norm of the gradient of each layer: embedding, block0…, head, by the names of GPT's parameters.

    nan where it is not finite. Raises ValueError for a name that is of no layer.
    """
    squares: dict[str, float] = {}
    for name, grad in grads.items():
        first, *rest = name.split(".")
        layer = f"block{rest[0]}" if first == "blocks" else LAYERS.get(first)
        if layer is None:
            raise ValueError(f"layer_norms: {name!r} is no parameter of a GPT")
        values = np.asarray(grad, np.float64).ravel()
        squares[layer] = squares.get(layer, 0.0) + float(values @ values)
    return {layer: scale * math.sqrt(s) if math.isfinite(s) else math.nan for layer, s in squares.items()}


def mutual_information(x: np.ndarray, y: np.ndarray, bins: int = MI_BINS) -> float:
    """In bits, of two series [N], by a histogram of bins × bins of equal width; nan if they are not finite.

    The plain estimate is too high by about (cells - rows - columns + 1) / (2N ln 2), the numbers of those that are not
    empty; for independent series that fill every cell, (bins - 1)² / (2N ln 2). It is taken off (Miller & Madow 1955).
    Never below 0. Of a series with itself: the entropy of its histogram.
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
    """[N, d] → [N]: the place of each row along the first principal component, up to sign and scale.

    The component is that of at most ROWS evenly spaced rows, so that its cost is bounded.
    """
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
    """Mutual information in bits between three arrays [N, d], each reduced to its first principal component.

    mi_input_repr, mi_repr_output, and mi_compression: the second over the first, None where that is 0. With N below
    FILL·MI_BINS² the histograms are coarser, as the correction for the bias fails where most cells are empty.
    """
    bins = max(2, min(MI_BINS, math.isqrt(len(inputs) // FILL)))
    x, r, y = map(_principal, (inputs, representation, outputs))
    first, second = mutual_information(x, r, bins), mutual_information(r, y, bins)
    return {"mi_input_repr": first, "mi_repr_output": second, "mi_compression": second / first if first else None}
