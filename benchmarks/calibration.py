"""Do the intervals cover and the tests hold their level? Simulated runs of known truth.

    coverage   share of 95 % intervals that hold the true value          should be 0.93 to 0.97
    level      share of true nulls with p < 0.05                         should be 0.035 to 0.065
    FWER, FDR  chance of one false finding in a family, share of false
               findings among all                                        should be at most 0.06
    power      share of planted effects found with n = 30 prompts a category

Shapes taken from SmolLM2-135M-Instruct (30 layers, 9 heads) on the built-in prompts: log-normal
heads whose log spread is 0.05 to 0.35 over prompts, a quarter of them sinks with small means and
log spread 0.4 to 1.2; common factors of both signs between heads; token counts as in the built-in
prompts, and entropies that depend on them; neutral prompts 1.3 times as variable as self-referent
ones. The truth is analytic: a head's mean is set, the random factor has mean 1. It is checked
against one large sample before anything else. Monte-Carlo errors count a data set once, however
many layers it has. Rows where the frame is the unit (n = 36, 12): frame_calibration.py.

    python benchmarks/calibration.py            some minutes on two cores
    python benchmarks/calibration.py --quick    a tenth of the data sets
    python benchmarks/calibration.py --run BASE INSTRUCT    frames of these crossed runs
"""

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import frame_calibration as frames  # noqa: E402  (the modules lie one folder up)
import numpy as np  # noqa: E402
from other_intervals import intervals_by_method, resampled_indices  # noqa: E402
from simulated_runs import EFFECT, SPREAD, TOKENS, draw_world, labels, simulate, true_indices  # noqa: E402

from rolecircuits.inputs.arguments import positive_int, seed_value  # noqa: E402
from rolecircuits.inputs.categories import CATEGORIES, PAIRED  # noqa: E402
from rolecircuits.inputs.errors import RunFailed  # noqa: E402
from rolecircuits.inputs.parser import Parser, run_script  # noqa: E402
from rolecircuits.stats import contrasts, entropy, permutation, resampling  # noqa: E402
from rolecircuits.stats.indices import (  # noqa: E402
    INDICES,
    indices_of_means,
    position_matched_values,
    position_weights,
)

DEMO = Path("results_activation_analysis/demo/crossed")
BLOCK = 20
DRAWS, FAMILY_DRAWS = 999, 1999
EFFECT_SIZES = (0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6)
BOUNDS = {
    "power": (0.0, 1.0),
    "coverage": (0.93, 0.97),
    "level": (0.035, 0.065),
    "family": (0.0, 0.06),
    "ratio": (0.0, np.inf),
}
OTHERS = ("percentile", "BCa", "equal-tailed t", frames.PROMPTS)  # methods that are not in use


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--n_datasets",
        type=positive_int,
        default=2000,
        help="simulated data sets a row (default 2000)",
    )
    parser.add_argument("--seed", type=seed_value, default=0)
    parser.add_argument("--workers", type=positive_int, default=2, help="processes (default 2)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the data sets")
    parser.add_argument(
        "--run",
        type=Path,
        nargs="+",
        help="one or two runs of the crossed set, two: base and instruct (default: latest_base and "
        f"latest_run of {DEMO}, if it is there)",
    )
    return parser.parse_args(argv)


def check_truth(rng):
    """Largest gap, in standard errors, between analytic category means and one large sample's."""
    world, n = draw_world(rng, 4, 8), 50_000
    values = simulate(rng, world, n, 1)[0][:, 0]
    gaps = []
    for c in CATEGORIES:
        part = values[labels(n)[0] == c]
        gaps.append(
            np.abs(part.mean(axis=0) - world.level * EFFECT[c]) / (part.std(axis=0) / np.sqrt(n))
        )
    return float(np.max(gaps))


def coverage_rows(rng, n, n_datasets, n_runs):
    """Coverage of every interval method for layers (means of 8 heads) and single heads."""
    hits = {}
    effects = (EFFECT, {**EFFECT, "self_referent": 0.9})[:n_runs]
    for block in range(0, n_datasets, BLOCK):
        world = draw_world(rng, 3, 8)
        simulated = simulate(rng, world, n, BLOCK, effects)
        for level in ("layer", "head"):
            flat = [
                (v.mean(axis=-1) if level == "layer" else v).reshape(len(v), -1) for v in simulated
            ]
            truths = [true_indices(world, effect, level == "layer") for effect in effects]
            for method, intervals in intervals_by_method(flat, n, DRAWS, block).items():
                for index, (low, high) in intervals.items():
                    truth = truths[0][index] - truths[1][index] if n_runs == 2 else truths[0][index]
                    truth = np.broadcast_to(truth, (BLOCK, *truth.shape)).reshape(-1)
                    inside = ((low <= truth) & (truth <= high)).reshape(BLOCK, -1).mean(axis=1)
                    hits.setdefault((level, index, method), []).append(inside)
    what = {1: "", 2: " difference of runs"}[n_runs]
    return [
        row(f"{level} {index.upper()}{what}", n, method, np.concatenate(shares), "coverage")
        for (level, index, method), shares in sorted(hits.items())
    ]


def mean_rows(rng, n, n_datasets):
    """Coverage for a mean of 20 layers, difference of two runs, and for a mean of skewed values."""
    hits, (category, pair_id) = {}, labels(n)
    effects = (EFFECT, {**EFFECT, "self_referent": 0.9})
    third, half = category == PAIRED[1], category == PAIRED[0]
    for i in range(n_datasets):
        if i % BLOCK == 0:
            world = draw_world(rng, 20, 8)
            data = simulate(rng, world, n, BLOCK, effects)
            truths = [true_indices(world, effect) for effect in effects]
        base, instruct = (run[:, i % BLOCK].mean(axis=-1) for run in data)
        counts = resampling.bootstrap_counts(category, pair_id, DRAWS, i)
        drawn = [resampled_indices(run, category, counts) for run in (base, instruct)]
        own = resampling.infer_mean_indices(instruct, category, pair_id, base, DRAWS, i)
        for index in INDICES:
            truth = (truths[1][index] - truths[0][index]).mean()
            what = f"mean of layers, {index.upper()} difference"
            draws = (drawn[1][index] - drawn[0][index]).mean(axis=-1)
            low, high = np.quantile(draws, [0.025, 0.975])
            hits.setdefault((what, "percentile"), []).append(low <= truth <= high)
            low, high = own[index][1:3]
            hits.setdefault((what, "bootstrap-t"), []).append(low <= truth <= high)
        z = rng.normal(size=len(category))
        z[third] = 0.7 * z[half] + np.sqrt(0.51) * z[third]
        level = np.repeat([0.1, 0.12, 0.2, 0.15], n)
        values = level * np.exp(0.5 * z - 0.125)
        draws = counts @ values / len(values)
        low, high = np.quantile(draws, [0.025, 0.975])
        what = "mean of all prompts, log spread 0.5"
        hits.setdefault((what, "percentile"), []).append(low <= level.mean() <= high)
        interval = resampling.stratified_mean_interval(values[:, None], category, pair_id, DRAWS, i)
        low, high = (end[0] for end in interval[1:])
        hits.setdefault((what, "bootstrap-t"), []).append(low <= level.mean() <= high)
    return [row(what, n, method, x, "coverage") for (what, method), x in hits.items()]


def level_rows(rng, n, n_datasets):
    """Rejections of true nulls by the tests in use, one layer at a time and as families."""
    category = labels(n)[0]
    flat_effect = dict.fromkeys(CATEGORIES, 1.0)
    alone, family = {}, {}
    for i in range(n_datasets):
        if i % BLOCK == 0:
            world = draw_world(rng, 30, 9)
            data = simulate(rng, world, n, BLOCK, (flat_effect, flat_effect))
        heads, layers = data[0][:, i % BLOCK], [run[:, i % BLOCK].mean(axis=-1) for run in data]
        tests = {
            "two runs, bootstrap-t, 30 layers": resampling.infer_indices(
                layers[1], category, None, layers[0], FAMILY_DRAWS, i
            )["rfc"]
        }
        for size, values in (("30 layers", layers[0]), ("270 heads", heads)):
            by = {c: values[category == c] for c in CATEGORIES}
            name = f"label permutation, {size}"
            tests[name] = permutation.permutation_test(
                by["self_referent"], by["neutral"], FAMILY_DRAWS, i
            )
            tests[f"sign flips, {size}"] = permutation.sign_flip_test(
                by[PAIRED[0]] - by[PAIRED[1]], FAMILY_DRAWS, i
            )
        for name, test in tests.items():
            alone.setdefault(name, []).append((test.p < 0.05).mean())
            family.setdefault(name, []).append(np.nanmin(test.p_max) < 0.05)
    return [row(name, n, "p < 0.05", x, "level") for name, x in alone.items()] + [
        row(name, n, "max-T p < 0.05 anywhere", x, "family") for name, x in family.items()
    ]


def planted(rng, n, n_data, g, share):
    """Heads of which a share have self-referent entropies raised by g standard deviations."""
    n_layers, n_heads = 30, 9
    world = draw_world(rng, n_layers, n_heads)
    large = simulate(np.random.default_rng(1), world, 500, 1, (dict.fromkeys(CATEGORIES, 1.0),))[0][
        :, 0
    ]
    category = labels(500)[0]
    spread = np.sqrt(
        (large[category == "self_referent"].var(axis=0) + large[category == "neutral"].var(axis=0))
        / 2
    )
    values = simulate(rng, world, n, n_data, (dict.fromkeys(CATEGORIES, 1.0),))[0]
    true = np.zeros(n_layers * n_heads, dtype=bool)
    true[rng.permutation(true.size)[: max(1, round(share * true.size))]] = True
    raised = labels(n)[0] == "self_referent"
    values[raised] += g * spread * true.reshape(spread.shape)
    return values, true


def discovery_rows(rng, n, n_datasets):
    """False discovery rate of BH with 10 % true effects, and how often each size is found."""
    category = labels(n)[0]
    false, power = [], {}
    for g in EFFECT_SIZES:
        for i in range(n_datasets // 2):
            if i % 5 == 0:
                values, true = planted(rng, n, 5, g, 0.1)
            part = values[:, i % 5].reshape(len(values), -1)
            groups = part[category == "self_referent"], part[category == "neutral"]
            test = permutation.permutation_test(*groups, FAMILY_DRAWS, i)
            rejected = contrasts.q_values(test.p) < 0.05
            false.append((rejected & ~true).sum() / max(1, rejected.sum()))
            verdicts = {
                "alone, p < 0.05": test.p < 0.05,
                "among 270, max-T": test.p_max < 0.05,
                "27 true, BH": rejected,
            }
            for name, hits in verdicts.items():
                power.setdefault((name, g), []).append(hits[true].mean())
    rows = [row("27 of 270 heads true", n, "BH, false share", false, "family")]
    return rows + [
        row(f"head {name}", n, f"g = {g:.1f}", x, "power") for (name, g), x in sorted(power.items())
    ]


def change_rows(rng, n, n_datasets):
    """How often a change of RFC between runs is found in a layer (mean of 8 heads), by its size."""
    category, flat = labels(n)[0], dict.fromkeys(CATEGORIES, 1.0)
    rows = []
    for change in (0.05, 0.1, 0.15, 0.2):
        hits = []
        for block in range(0, n_datasets, BLOCK):
            world = draw_world(rng, 3, 8)
            runs = simulate(rng, world, n, BLOCK, (flat, {**flat, "self_referent": 1 - change}))
            base, instruct = (run.mean(axis=-1).reshape(4 * n, -1) for run in runs)
            p = resampling.infer_indices(instruct, category, None, base, DRAWS, block)["rfc"].p
            hits.append((p < 0.05).reshape(BLOCK, -1).mean(axis=1))
        rows.append(
            row(
                "layer, change of RFC between runs",
                n,
                f"change {change:.2f}",
                np.concatenate(hits),
                "power",
            )
        )
    return rows


def position_rows(rng, n, n_datasets):
    """Coverage of the position-matched indices.

    Rows of unequal texts whose level depends on position and category.
    """
    hits = {"rfc": [], "rsi": []}
    category, pair_id = labels(n)
    keys, n_query = entropy.visible_keys(9, [None] * 10), 9
    profile = np.linspace(0.9, 0.5, n_query)
    for i in range(max(1, n_datasets // 10)):
        n_tokens = np.concatenate(
            [rng.choice(np.arange(4, 10), p=np.divide(TOKENS[c], 30), size=n) for c in CATEGORIES]
        )
        tilt = {
            c: profile * EFFECT[c] * np.linspace(1, SPREAD[c], n_query) ** 0.2 for c in CATEGORIES
        }
        z = 0.6 * rng.normal(size=(4 * n, 10, 1, 1)) + 0.8 * rng.normal(
            size=(4 * n, 10, 1, n_query)
        )
        rows = (
            0.7
            * np.stack([tilt[c] for c in category])[:, None, None]
            * np.exp(0.15 * z - 0.15**2 / 2)
        )
        seen = np.arange(n_query) < n_tokens[:, None, None, None]
        run = SimpleNamespace(
            entropy=np.where(seen, rows * np.log(keys)[None, :, None], np.nan),
            visible_keys=keys,
            category=category,
            n_tokens=n_tokens,
            span=np.stack([np.ones_like(n_tokens), n_tokens], axis=1),
        )
        weight = np.nan_to_num(position_weights(run))
        truth = indices_of_means(lambda c: (weight * 0.7 * tilt[c]).sum(axis=-1))  # noqa: B023
        values = position_matched_values(run)
        inferred = resampling.infer_indices(values, category, pair_id, None, DRAWS, i)
        for index, (_, low, high, *_) in inferred.items():
            hits[index].append(((low <= truth[index]) & (truth[index] <= high)).mean())
    return [
        row(f"position-matched {index.upper()}", n, "bootstrap-t", x, "coverage")
        for index, x in hits.items()
    ]


def effect_size_rows(rng, n, n_datasets):
    """Coverage of the interval of Hedges g, true g = 0.8: two shapes, unpaired and paired."""
    rows = []
    for shape in ("normal", "log-normal 0.3"):
        for paired in (False, True):
            z = rng.normal(size=(2, n, n_datasets))
            if paired:
                z[1] = 0.7 * z[0] + np.sqrt(0.51) * z[1]
            a, b = z if shape == "normal" else np.exp(0.3 * z)
            spread = 1.0 if shape == "normal" else np.sqrt((np.exp(0.09) - 1) * np.exp(0.09))
            low, high = contrasts.hedges_g_interval(a + 0.8 * spread, b, paired)
            inside = (low <= 0.8) & (high >= 0.8)
            rows.append(
                row(f"Hedges g, {shape}", n, "paired" if paired else "unpaired", inside, "coverage")
            )
    return rows


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
    """Rows that must be inside their bound: the methods in use, 30 prompts or 36 frames."""
    free = ("power", "ratio")
    return [r for r in table if r[1] in (30, 36) and r[5] not in free and r[2] not in OTHERS]


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
    return stage(np.random.default_rng(seed), n, n_datasets, *arguments)


def frame_rows(rng, n, n_datasets, stage, source):
    """Rows of a stage of frame_calibration.py."""
    return [row(*cells) for cells in stage(rng, n, n_datasets, source)]


def plan_stages(seed, n_datasets, sources):
    """The stages as tasks, the longest first; families get half or a tenth of the data sets."""
    half, tenth = (max(BLOCK, n_datasets // k // BLOCK * BLOCK) for k in (2, 10))
    stages = [(discovery_rows, 30, tenth, ())]
    for n in (30, 10):
        stages += [
            (level_rows, n, half, ()),
            (coverage_rows, n, n_datasets, (1,)),
            (coverage_rows, n, n_datasets, (2,)),
        ]
        stages += [(position_rows, n, n_datasets, ()), (effect_size_rows, n, n_datasets, ())]
    stages.append((change_rows, 30, tenth, ()))
    stages += [(mean_rows, n, n_datasets, ()) for n in (30, 10)]  # behind: streams go by place
    for source in sources:
        for n in (36, 12):
            stages.append((frame_rows, n, half, (frames.coverage_rows, source)))
            stages.append((frame_rows, n, max(BLOCK, half // 2), (frames.level_rows, source)))
    seeds = np.random.SeedSequence(seed).spawn(len(stages))
    return [(stage, child, *rest) for (stage, *rest), child in zip(stages, seeds, strict=True)]


def sources_of(paths):
    """Where frames come from: the runs given or those of the demo, and two simulations."""
    if paths is None:
        paths = [DEMO / name for name in ("latest_base", "latest_run")] if DEMO.exists() else []
        if not paths:
            print(f"{DEMO} is not there: no frames of a run are drawn (see --run)")
    return [frames.read_population(paths)] * bool(paths) + [frames.Simulated(r) for r in (0.0, 0.9)]


def run(args):
    n_datasets = max(
        BLOCK, (args.n_datasets // 10 if args.quick else args.n_datasets) // BLOCK * BLOCK
    )
    sources = sources_of(args.run)
    print(f"{n_datasets} data sets for coverage, half of it for families; seed {args.seed}")
    gap = check_truth(np.random.default_rng(args.seed))
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
        outside = f"{len(broken)} of {len(rows)} rows at n = 30 and 36 are outside their bounds"
        raise RunFailed(f"{outside}: {broken[0][0]}")
    near = sum(r[-1] == "within error" for r in rows)
    inside = f"{len(rows) - near} of {len(rows)} rows of the methods in use at n = 30 and 36"
    print(f"{inside} are inside their bounds")
    print(f"{near} are within three Monte-Carlo errors of them, none is further out")


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
