"""Does the test of cross_model_correlation.py hold its level? Unrelated profiles that drift.

A profile is noise, smooth along depth, of standard deviation 1, and a monotone trend of either
sign that is unrelated to the other profile's:

    noise   independent layers (the increments of a random walk); AR(1) of 0.4 and 0.8; the mean of
            3 or of 6 neighbours
    trend   none, linear, 1 - exp(-k depth) with k from 1 to 6, or a sigmoid step at a random depth
            (0.15 to 0.85) and of a random width (0.02 to 0.15 of the depth); its size, last layer
            minus first, is up to 5, uniformly, or 5

A row is (what, n, method, one number a data set, kind), n the number of layers, which
calibration.py judges and prints. In use is the modified t-test after a quadratic trend is removed;
the t-test and the circular shifts of profiles as they are stand beside it.

    python benchmarks/profile_calibration.py        a minute
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402  (the modules lie one folder up)

from rolecircuits.inputs.arguments import positive_int, seed_value  # noqa: E402
from rolecircuits.inputs.parser import Parser, run_script  # noqa: E402
from rolecircuits.stats.profile_tests import TRENDS, correlate_detrended  # noqa: E402

LAYERS = (24, 32, 40)
LARGEST = 5.0  # of a trend, in standard deviations of the noise
SHAPES = ("linear", "saturating", "sigmoid")
NOISES = {
    "independent": ("ar", 0.0),
    "AR(1) 0.4": ("ar", 0.4),
    "AR(1) 0.8": ("ar", 0.8),
    "mean of 3": ("mean", 3),
    "mean of 6": ("mean", 6),
}
IN_USE = "quadratic, t"
NOT_IN_USE = ("as is, t", "as is, shifts")


def draw_noise(rng, n, name):
    """Noise of n layers, standard deviation 1: [layer]."""
    form, value = NOISES[name]
    if form == "mean":
        drawn = rng.normal(size=n + value - 1)
        return np.convolve(drawn, np.full(value, value**-0.5), "valid")
    drawn, fresh = rng.normal(size=n), np.sqrt(1 - value**2)
    for layer in range(1, n):
        drawn[layer] = value * drawn[layer - 1] + fresh * drawn[layer]
    return drawn


def draw_trend(rng, n, shape):
    """A monotone trend from 0 to about 1, of either sign: [layer]."""
    depth = np.linspace(0, 1, n)
    if shape == "saturating":
        rate = rng.uniform(1, 6)
        depth = (1 - np.exp(-rate * depth)) / (1 - np.exp(-rate))
    elif shape == "sigmoid":
        depth = 1 / (1 + np.exp((rng.uniform(0.15, 0.85) - depth) / rng.uniform(0.02, 0.15)))
    return depth * rng.choice([-1.0, 1.0])


def draw_profile(rng, n, noise, shape):
    """A profile [layer]; shape one of SHAPES at its largest, "none", or "any" of any size."""
    values = draw_noise(rng, n, noise)
    if shape == "any":
        size = rng.uniform(0, LARGEST)
        return values + size * draw_trend(rng, n, SHAPES[rng.integers(len(SHAPES))])
    return values + (LARGEST * draw_trend(rng, n, shape) if shape != "none" else 0.0)


def profile_rows(rng, n_datasets):
    """Rejections of the true null by every method, for each noise and depth, and for each trend."""
    cases = [(n, noise, "any") for n in LAYERS for noise in NOISES]
    cases += [(n, None, shape) for n in LAYERS for shape in ("none", *SHAPES)]
    rows = []
    for n, noise, shape in cases:
        hits = {method: [] for method in (IN_USE, *NOT_IN_USE)}
        for i in range(n_datasets):
            own = noise or list(NOISES)[i % len(NOISES)]
            pair = [draw_profile(rng, n, own, shape) for _ in range(2)]
            plain = correlate_detrended(*pair, TRENDS["plain"])
            p = (correlate_detrended(*pair, TRENDS["quadratic"]).p, plain.p, plain.shift_p)
            for method, value in zip(hits, p, strict=True):
                hits[method].append(value < 0.05)
        what = f"profiles, {noise or f'{shape}, any noise'}"
        rows += [(what, n, method, np.array(x, dtype=float), "level") for method, x in hits.items()]
    return rows


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    many = {"type": positive_int, "default": 2000, "help": "data sets a row (default 2000)"}
    parser.add_argument("--n_datasets", **many)
    parser.add_argument("--seed", type=seed_value, default=0)
    return parser.parse_args(argv)


def run(args):
    for what, n, method, hits, _ in profile_rows(np.random.default_rng(args.seed), args.n_datasets):
        print(f"{what:36s} n={n:<3d} {method:24s} {100 * hits.mean():6.2f} %")


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
