"""How long do intervals and tests of all heads take, and how much memory?

One contrast of all heads with everything that a table holds of it (interval, g, p with further
draws, q, max-T), 10,000 resamples, on log-normal values of which one head in ten differs; each case
in a process of its own, for its peak memory.

    python benchmarks/bench_inference.py        a minute
"""

import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402  (the modules lie one folder up)

from rolecircuits.inputs.categories import CATEGORIES  # noqa: E402
from rolecircuits.inputs.parser import Parser, run_script  # noqa: E402
from rolecircuits.stats.contrasts import compare_categories  # noqa: E402

SIZES = ((30, 9, 120), (32, 32, 360), (80, 64, 360))
DESIGNS = ("crossed", "clusters", "independent")
CONTRAST = ("self_referent", "neutral")


def parse_args(argv=None):
    return Parser(description=__doc__).parse_args(argv)


def measure(case):
    """(seconds, peak memory in MB) of one case (layers, heads, prompts, design)."""
    n_layers, n_heads, n_prompts, design = case
    rng, per = np.random.default_rng(0), n_prompts // len(CATEGORIES)
    category = np.repeat(CATEGORIES, per)
    unit = np.full(n_prompts, -1)
    if design == "crossed":
        unit = np.tile(np.arange(per), len(CATEGORIES))
    elif design == "clusters":
        unit = rng.integers(per // 3, size=n_prompts)
    values = np.exp(0.3 * rng.normal(size=(n_prompts, n_layers, n_heads)))
    values[category == CONTRAST[0]] += 0.3 * (rng.random((n_layers, n_heads)) < 0.1)
    start = time.perf_counter()
    compare_categories(values, category, unit, CONTRAST)
    seconds = time.perf_counter() - start
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(args):
    cases = [(*size, design) for size in SIZES for design in DESIGNS]
    print(f"{'heads':>10s} {'prompts':>8s} {'design':>12s} {'seconds':>8s} {'peak MB':>8s}")
    for case in cases:
        with ProcessPoolExecutor(1) as pool:
            seconds, memory = pool.submit(measure, case).result()
        size = f"{case[0]} x {case[1]}"
        print(f"{size:>10s} {case[2]:8d} {case[3]:>12s} {seconds:8.2f} {memory:8.0f}", flush=True)


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
