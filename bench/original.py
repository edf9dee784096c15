"""The figures of the two runs that helios-reproduce runs again, as recorded by the system that Helios replaces.

Losses are in nats, norms are those before clipping.
"""

from __future__ import annotations

from typing import NamedTuple


class Point(NamedTuple):
    step: int
    loss: float
    grad_norm: float
    lr: float
    tokens_per_sec: float
    ms: float


class Stretch(NamedTuple):
    """The mean and the lowest loss of the steps first ≤ step < past."""

    first: int
    past: int
    mean: float
    low: float


class Trained(NamedTuple):
    """A candidate of the search."""

    id: str
    activation: str
    steps: int  # recorded, of 20
    loss: float  # the lowest of its training steps, by which it was ranked
    fitness: float
    spikes: int
    clipped: int  # steps
    alerts: int  # steps
    tokens_per_sec: float  # mean


class Run(NamedTuple):
    id: str
    date: str
    device: str
    driver: str
    text: str
    seconds: float
    steps: int
    recorded: int  # of the steps, in its metrics
    parameters: int
    tokens_per_sec: float  # mean
    ms: float  # mean of a step
    ops: int  # operations on the device in a step
    first_loss: float
    last_loss: float  # of the last step recorded
    last_step: int
    points: tuple[Point, ...]
    stretches: tuple[Stretch, ...]
    validation: dict[int, float]  # by step
    best_validation: float


DRIVER = "Vulkan, SPIR-V kernels"

# -- run 5ke3: a search over four activations, then 340 steps ---------------------------------------------------------
# Its summary gives 7.2994 as the validation loss of step 400, its table 7.3268.
SEARCHED = Run(
    id="5ke3", date="2026-02-25", device="NVIDIA L4", driver=DRIVER, text="historic-chat-v2.txt, 33 MB", seconds=1015,
    steps=500, recorded=435, parameters=6_937_088, tokens_per_sec=3419, ms=713, ops=612, first_loss=8.3546,
    last_loss=7.2586, last_step=498,
    points=(
        Point(10, 8.2620, 1.277, 6.4e-5, 6917, 296), Point(20, 8.1103, 0.731, 1.2e-4, 7428, 276),
        Point(30, 8.1394, 520.5, 1.8e-4, 2812, 728), Point(40, 8.0284, 0.649, 2.4e-4, 2877, 712),
        Point(50, 7.9979, 0.651, 3.0e-4, 7153, 286), Point(60, 7.7401, 0.496, 3.0e-4, 6983, 293),
        Point(70, 8.0433, 0.666, 3.0e-4, 2544, 805), Point(80, 7.7973, 0.561, 3.0e-4, 2652, 772),
        Point(90, 8.0065, 0.648, 2.9e-4, 2665, 768), Point(100, 7.7882, 16214, 2.9e-4, 2609, 785),
        Point(110, 7.9892, 0.622, 2.9e-4, 7244, 283), Point(120, 7.7010, 0.498, 2.8e-4, 7419, 276),
        Point(130, 7.9838, 0.670, 2.8e-4, 7509, 273), Point(140, 7.7648, 0.514, 2.7e-4, 7086, 289),
        Point(150, 8.1011, 47.4, 2.7e-4, 2874, 713), Point(180, 7.6251, 0.494, 2.4e-4, 2805, 730),
        Point(200, 7.5731, 0.465, 2.3e-4, 2751, 744), Point(250, 7.5172, 0.477, 1.8e-4, 2699, 759),
        Point(300, 7.3970, 0.595, 1.3e-4, 2782, 736), Point(350, 7.4110, 1260, 8.0e-5, 2642, 775),
        Point(400, 7.3393, 251.0, 4.0e-5, 2811, 728), Point(450, 7.2823, 0.641, 1.5e-5, 2724, 752),
        Point(490, 7.2199, 0.631, 5.4e-6, 2793, 733),
    ),
    stretches=(
        Stretch(0, 50, 8.1957, 8.0214), Stretch(50, 100, 8.0074, 7.7401), Stretch(100, 150, 8.0215, 7.7010),
        Stretch(150, 200, 7.7348, 7.5470), Stretch(200, 250, 7.5203, 7.4423), Stretch(250, 300, 7.4413, 7.3294),
        Stretch(300, 350, 7.3806, 7.3027), Stretch(350, 400, 7.3183, 7.2104), Stretch(400, 450, 7.2813, 7.2117),
        Stretch(450, 500, 7.2677, 7.2160),
    ),
    validation={100: 8.3418, 200: 7.5354, 400: 7.3268}, best_validation=7.2994,
)
RANKING = (  # as it ranked them, the winner first
    Trained("gen1_relu_6", "relu", 20, 7.701, 0.0327, 0, 2, 12, 6960),
    Trained("gen0_relu_3", "relu", 20, 7.740, 0.0318, 0, 2, 11, 6716),
    Trained("gen1_gelu_7", "gelu", 20, 7.760, 0.0315, 0, 3, 20, 6903),
    Trained("gen1_swiglu_5", "swiglu", 18, 7.788, 0.0296, 2, 4, 0, 2615),
    Trained("gen0_swiglu_4", "swiglu", 19, 7.797, 0.0301, 2, 5, 4, 2627),
    Trained("gen0_silu_2", "silu", 18, 8.026, 0.0284, 4, 5, 2, 2555),
    Trained("gen1_silu_8", "silu", 17, 7.868, 0.0280, 1, 4, 12, 2872),
    Trained("gen0_gelu_1", "gelu", 20, 8.110, 0.0266, 0, 13, 5, 6571),
)
SEARCH_STEPS, AFTER_STEPS = 160, 340
SEARCH_RECORDED, AFTER_RECORDED = 152, 283  # steps
SEARCH_SPIKES, AFTER_SPIKES, SPIKE = 9, 52, 10.0  # steps with a norm above SPIKE
NOT_FINITE = 4  # gradients
WORST_NORM, WORST_STEP = 774_971, 190
CLIPPED = 0.231  # of all steps
LAST_MONITORED = 154  # last step with change-point statistics
AFTER_FIRST_LOSS = 7.833
AFTER_LABEL, AFTER_LIKELY = "relu", "silu"  # the activation after the search: in its records, and most likely
AFTER_TOKENS_PER_SEC = 2659
GAP = 2.7  # ratio of its fast activations' speed to its slow ones', in its own words
FFN_DIM = 704  # of every candidate: the width meant for swiglu

# -- run 4kwo: gelu, 5,539 steps of a schedule of 50,000 --------------------------------------------------------------
LONG = Run(
    id="4kwo", date="2026-02-24", device="NVIDIA L4", driver=DRIVER, text="historic-chat.txt, 23.8 MB", seconds=15_044,
    steps=5539, recorded=5297, parameters=6_838_784, tokens_per_sec=1590, ms=2570, ops=1224, first_loss=8.356,
    last_loss=5.456, last_step=5539,
    points=(
        Point(1, 8.356, 1.60, 3.05e-6, 1162, 3525), Point(10, 8.337, 1.62, 3.54e-6, 1571, 2607),
        Point(50, 8.233, 1.09, 5.70e-6, 1582, 2590), Point(100, 8.135, 0.72, 8.40e-6, 1668, 2455),
        Point(250, 7.868, 0.57, 1.65e-5, 1721, 2379), Point(500, 7.437, 0.76, 3.00e-5, 1572, 2606),
        Point(750, 7.043, 1.01, 3.00e-5, 1643, 2494), Point(1000, 6.688, 2.97, 3.00e-5, 1666, 2459),
        Point(1500, 6.307, 3.22, 3.00e-5, 1574, 2602), Point(2000, 6.120, 13.76, 2.99e-5, 1587, 2581),
        Point(2500, 5.941, 14.54, 2.99e-5, 1540, 2660), Point(3000, 5.761, 3.87, 2.98e-5, 1585, 2584),
        Point(3500, 5.699, 253.98, 2.98e-5, 1575, 2601), Point(4000, 5.628, 33.24, 2.97e-5, 1463, 2799),
        Point(4500, 5.576, 34.99, 2.96e-5, 1542, 2656), Point(5000, 5.472, 93.46, 2.95e-5, 1576, 2599),
    ),
    stretches=(
        Stretch(0, 500, 7.866, 7.418), Stretch(500, 1000, 7.015, 6.614), Stretch(1000, 2000, 6.340, 6.009),
        Stretch(2000, 3000, 5.945, 5.636), Stretch(3000, 4000, 5.640, 5.455), Stretch(4000, 5540, 5.501, 5.279),
    ),
    validation={2500: 6.063, 5000: 5.674}, best_validation=5.674,
)
SCHEDULE_STEPS = 50_000
NORM_MEAN, NORM_LOW, NORM_HIGH = 83.60, 0.529, 4726.57
NORM_PERCENTILES = {1: 0.56, 10: 0.91, 25: 2.20, 50: 13.95, 75: 63.05, 90: 198.97, 99: 1108.30}
NORMS_ABOVE = {100: 0.181, 1000: 0.012}  # share of the steps
POOL_MB, USED_MB = (829, 945), (1100, 3600)
PHASES_MS = {"fwd": 1790.0, "bwd": 710.0, "grad_norm": 22.0, "optim": 22.0}
SOFTCAP_OPS = 42  # operations in a step that are for the soft cap in the forward pass
