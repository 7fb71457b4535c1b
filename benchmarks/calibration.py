"""Do the intervals cover and the tests hold their level? Simulated runs of known truth.

    coverage   share of 95 % intervals that hold the true value          should be 0.93 to 0.97
    level      share of true nulls with p < 0.05                         should be 0.035 to 0.065
    FWER, FDR  chance of one false finding in a family, share of false
               findings among all                                        should be at most 0.06
    power      share of planted effects found with n = 30 prompts a category

Where the data come from:

    simulated_calibration.py  independent prompts, made-up models
    prompt_calibration.py     real prompts whose first words are clusters; sets about nobody
    frame_calibration.py      frames of real crossed runs and simulated ones
    profile_calibration.py    layer profiles of two models

Monte-Carlo errors count a data set once, however many layers it has.

    python benchmarks/calibration.py            about 20 minutes on two cores
    python benchmarks/calibration.py --quick    a tenth of the data sets
    python benchmarks/calibration.py --run BASE INSTRUCT    frames of these crossed runs
"""

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import frame_calibration as frames  # noqa: E402  (the modules lie one folder up)
import numpy as np  # noqa: E402
import profile_calibration  # noqa: E402
import prompt_calibration as words  # noqa: E402
import simulated_calibration as simulated  # noqa: E402

from rolecircuits.inputs.arguments import positive_int, seed_value  # noqa: E402
from rolecircuits.inputs.errors import RunFailed  # noqa: E402
from rolecircuits.inputs.parser import Parser, run_script  # noqa: E402

BLOCK = 20
BOUNDS = {
    "power": (0.0, 1.0),
    "found": (0.95, 1.0),
    "coverage": (0.93, 0.97),
    "level": (0.035, 0.065),
    "family": (0.0, 0.065),
    "discovery": (0.0, 0.06),
    "random heads": (0.03, 0.07),
    "nobody layers": (0.0, 1 / 30),
    "nobody heads": (0.0, 0.01),
    "ratio": (0.0, np.inf),
}
OTHERS = (  # methods that are not in use, and where none holds
    *("percentile", "BCa", "equal-tailed t", simulated.EXTREME),
    *(frames.PROMPTS, words.UNEQUAL, *profile_calibration.NOT_IN_USE),
)
JUDGED = (30, 36, *profile_calibration.LAYERS)  # prompts, frames; layers of profiles


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--n_datasets",
        type=positive_int,
        default=1000,
        help="data sets a row at most (default 1000); families have a tenth to a half of them",
    )
    parser.add_argument("--seed", type=seed_value, default=0)
    parser.add_argument("--workers", type=positive_int, default=2, help="processes (default 2)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the data sets")
    parser.add_argument(
        "--run",
        type=Path,
        nargs="+",
        help="one or two runs of the crossed set, two: base and instruct (default: those kept in "
        "benchmarks/data)",
    )
    return parser.parse_args(argv)


def row(what, n, method, observed, kind):
    """One line of the table: the rate, its Monte-Carlo standard error over data sets, the verdict.

    "within error": outside its bound by at most three of those errors
    """
    observed = np.asarray(observed, dtype=np.float64)
    rate, spread = observed.mean(), observed.std()
    if not spread:
        spread = np.sqrt((len(observed) + 1) / (len(observed) + 2) ** 2)
    error = spread / np.sqrt(len(observed))
    low, high = BOUNDS[kind]
    inside = low <= rate <= high
    near = low - 3 * error <= rate <= high + 3 * error
    return (
        what,
        n,
        method,
        rate,
        error,
        kind,
        "inside" if inside else "within error" if near else "OUTSIDE",
    )


def judged(table):
    """Rows that must be inside their bound: the methods in use, sizes in JUDGED."""
    free = ("power", "ratio")
    return [r for r in table if r[1] in JUDGED and r[5] not in free and r[2] not in OTHERS]


def needed_effects(table):
    """{test: g that is found 80 % of the time}, interpolated; NaN beyond the sizes tried."""
    curves = {}
    for what, _, method, rate, _, kind, _ in table:
        if kind == "power" and method.startswith("g ="):
            curves.setdefault(what, []).append((float(method[4:]), rate))
    return {
        what: float(
            np.interp(
                0.8, [rate for _, rate in curve], [g for g, _ in curve], left=np.nan, right=np.nan
            )
        )
        for what, curve in curves.items()
    }


def run_stage(task):
    """Rows of one stage, from its own random stream."""
    stage, seed, n, n_datasets, arguments = task
    rows = stage(np.random.default_rng(seed), n, n_datasets, *arguments)
    return [row(*cells) for cells in rows]


def plan_stages(seed, n_datasets, sources):
    """The stages as tasks, the longest first; families get a part of the data sets."""
    half, fifth, tenth = (max(BLOCK, n_datasets // k // BLOCK * BLOCK) for k in (2, 5, 10))
    stages, population = [(simulated.discovery_rows, 30, fifth, ())], words.Words.read()
    for way in words.WAYS:
        for n in (30,) if way == "unequal" else (30, 12):
            stages.append((words.level_rows, n, fifth, (population, way)))
            stages.append((words.coverage_rows, n, half, (population, way)))
    for source in sources:
        for n in (30, 36, 12) if isinstance(source, frames.Population) else (36,):
            stages.append((frames.level_rows, n, fifth, (source,)))
            stages.append((frames.coverage_rows, n, half, (source,)))
    for n in (30, 10):
        stages += [
            (simulated.level_rows, n, half, ()),
            (simulated.coverage_rows, n, n_datasets, (1,)),
            (simulated.coverage_rows, n, n_datasets, (2,)),
            (simulated.position_rows, n, n_datasets, ()),
            (simulated.effect_size_rows, n, 2 * n_datasets, ()),
            (simulated.mean_rows, n, n_datasets, ()),
        ]
    stages += [(simulated.change_rows, 30, fifth, ()), (simulated.single_rows, 30, tenth, ())]
    stages.append((simulated.unequal_rows, 30, n_datasets, ()))
    stages.append((simulated.random_head_rows, 30, half, ()))
    stages += [(words.nobody_rows, 30, 1, ()), (profiles_of, 32, n_datasets, ())]
    seeds = np.random.SeedSequence(seed).spawn(len(stages))
    return [(stage, child, *rest) for (stage, *rest), child in zip(stages, seeds, strict=True)]


def profiles_of(rng, n, n_datasets):
    """profile_calibration's rows, which have their own numbers of layers."""
    return profile_calibration.profile_rows(rng, n_datasets)


def sources_of(paths):
    """Where frames come from: the runs given or those of benchmarks/data, and two simulations."""
    population = frames.read_population(paths) if paths else frames.read_kept()
    return [population, frames.Simulated(0.0), frames.Simulated(0.9)]


def run(args):
    n_datasets = max(
        BLOCK, (args.n_datasets // 10 if args.quick else args.n_datasets) // BLOCK * BLOCK
    )
    sources = sources_of(args.run)
    print(
        f"{n_datasets} data sets at most, a tenth to a half of them for families; seed {args.seed}"
    )
    gap = simulated.check_truth(np.random.default_rng(args.seed))
    largest = f"largest of 128 gaps is {gap:.2f} standard errors"
    print(f"analytic truth against 50,000 prompts a category: {largest}")
    table = []
    with ProcessPoolExecutor(args.workers) as pool:
        for rows in pool.map(run_stage, plan_stages(args.seed, n_datasets, sources)):
            for what, n, method, rate, error, kind, verdict in rows:
                shown = f"{100 * rate:6.2f} % +- {100 * error:.2f}"
                verdict = "" if kind in ("power", "ratio") else verdict
                line = f"{what:36s} n={n:<3d} {method:24s} {kind:9s} {shown}   {verdict}"
                print(line, flush=True)
            table += rows
    for what, g in needed_effects(table).items():
        print(f"80 % power at n = 30: {what}: g = {g:.2f}")
    rows = judged(table)
    broken = [r for r in rows if r[-1] == "OUTSIDE"]
    if broken:
        outside = f"{len(broken)} of {len(rows)} judged rows are outside their bounds"
        raise RunFailed(f"{outside}: {broken[0][0]}")
    near = sum(r[-1] == "within error" for r in rows)
    inside = f"{len(rows) - near} of {len(rows)} judged rows of the methods in use"
    print(f"{inside} are inside their bounds")
    print(f"{near} are within three Monte-Carlo errors of them, none is further out")


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
