"""Do intervals and tests hold for independent prompts? Simulated runs of known truth.

Shapes taken from SmolLM2-135M-Instruct (30 layers, 9 heads) on the built-in prompts: log-normal
heads whose log spread is 0.05 to 0.35 over prompts, a quarter of them sinks with small means and
log spread 0.4 to 1.2; common factors of both signs between heads; token counts as in the built-in
prompts, and entropies that depend on them; neutral prompts 1.3 times as variable as self-referent
ones. The truth is analytic: a head's mean is set, the random factor has mean 1.

A row is (what, n, method, one number a data set, kind), which calibration.py judges and prints.
"""

from types import SimpleNamespace

import numpy as np
from other_intervals import intervals_by_method, resampled_indices
from simulated_runs import EFFECT, SPREAD, TOKENS, draw_world, labels, simulate, true_indices

from rolecircuits.edits.ranks import rank_sizes, rank_test
from rolecircuits.inputs.categories import CATEGORIES, PAIRED
from rolecircuits.stats import contrasts, entropy, index_inference, resampling
from rolecircuits.stats.indices import (
    INDICES,
    indices_of_means,
    position_matched_values,
    position_weights,
)

BLOCK = 20
DRAWS, FAMILY_DRAWS = 999, 1999
SINK = 0.36  # log spread that only the heavy-tailed heads of simulated_runs.py have
EFFECT_SIZES = (0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6)
RANKS = "exact ranks"
EXTREME = "bootstrap-t, extreme"  # where no method that was tried holds


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
        (f"{level} {index.upper()}{what}", n, method, np.concatenate(shares), "coverage")
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
        own = index_inference.infer_mean_indices(instruct, category, pair_id, base, DRAWS, i)
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
        found = resampling.infer_mean(values[:, None], category, pair_id, n_resamples=DRAWS, seed=i)
        low, high = found.low[0], found.high[0]
        hits.setdefault((what, "bootstrap-t"), []).append(low <= level.mean() <= high)
    return [(what, n, method, x, "coverage") for (what, method), x in hits.items()]


def level_rows(rng, n, n_datasets):
    """Rejections of true nulls by the tests in use, one layer at a time and as families."""
    category = labels(n)[0]
    flat_effect = dict.fromkeys(CATEGORIES, 1.0)
    seen = {}
    for i in range(n_datasets):
        if i % BLOCK == 0:
            world = draw_world(rng, 30, 9)
            data = simulate(rng, world, n, BLOCK, (flat_effect, flat_effect))
        heads, layers = data[0][:, i % BLOCK], [run[:, i % BLOCK].mean(axis=-1) for run in data]
        two = index_inference.infer_indices(layers[1], category, None, layers[0], FAMILY_DRAWS, i)
        tests = {"two runs, 30 layers": two["rfc"]}
        for size, values in (("30 layers", layers[0]), ("270 heads", heads)):
            by, draws = {c: values[category == c] for c in CATEGORIES}, (FAMILY_DRAWS, i)
            sides = by["self_referent"], by["neutral"]
            tests[f"prompts, {size}"] = resampling.infer_difference(*sides, False, *draws)
            sides = by[PAIRED[0]], by[PAIRED[1]]
            tests[f"pairs, {size}"] = resampling.infer_difference(*sides, True, *draws)
        for name, test in tests.items():
            count_test(seen, (name, "bootstrap-t"), test)
    return [(*key[:1], n, key[1], x, key[2]) for key, x in seen.items()]


def count_test(seen, key, test, families=True):
    """Add what one data set under a true null says: level; max-T and BH of its family, if asked."""
    seen.setdefault((*key, "level"), []).append((test.p < 0.05).mean())
    if not families:
        return
    seen.setdefault((*key, "family"), []).append(np.nanmin(test.p_max) < 0.05)
    seen.setdefault((*key, "discovery"), []).append((contrasts.q_values(test.p) < 0.05).any())


def unequal_rows(rng, n, n_datasets):
    """Equal means, unequal sizes and spread: 15 prompts against 30, skewed or with spikes.

    Columns are data sets. Where the small group is the more variable and strongly skewed no method
    that was tried holds; those rows are printed beside the others and say "extreme".
    """
    rows = []
    for shape in ("normal", "log-normal 0.3", "log-normal 0.8", "spikes", "log-normal 1.2"):
        for spread in (1.0, 2.0, 0.5):
            a, b = (draw_shape(rng, shape, (size, 10 * n_datasets)) for size in (n // 2, n))
            found = resampling.infer_difference(spread * a, b, False, DRAWS, 1)
            hard = shape == "log-normal 1.2" or (
                spread > 1 and shape in ("log-normal 0.8", "spikes")
            )
            method = EXTREME if hard else "bootstrap-t"
            what = f"{n // 2} : {n}, {shape}, spread {spread:g} : 1"
            rows.append((what, n, method, found.p < 0.05, "level"))
    return rows


def draw_shape(rng, shape, size):
    """Values of mean 0 and variance 1."""
    z = rng.standard_normal(size)
    if shape == "normal":
        return z
    if shape == "spikes":  # one value in ten is far above the others
        far = rng.random(size) < 0.1
        return (0.3 * z + 2.0 * far - 0.2) / np.sqrt(0.09 + 4 * 0.09)
    s = float(shape.split()[1])
    return (np.exp(s * z) - np.exp(s**2 / 2)) / np.sqrt(np.expm1(s**2) * np.exp(s**2))


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
            test = resampling.infer_difference(*groups, False, FAMILY_DRAWS, i)
            rejected = contrasts.q_values(test.p) < 0.05
            false.append((rejected & ~true).sum() / max(1, rejected.sum()))
            verdicts = {
                "alone, p < 0.05": test.p < 0.05,
                "among 270, max-T": test.p_max < 0.05,
                "27 true, BH": rejected,
            }
            for name, hits in verdicts.items():
                power.setdefault((name, g), []).append(hits[true].mean())
    rows = [("27 of 270 heads true", n, "BH, false share", false, "discovery")]
    return rows + [
        (f"head {name}", n, f"g = {g:.1f}", x, "power") for (name, g), x in sorted(power.items())
    ]


def single_rows(rng, n, n_datasets):
    """One head of g = 2 among 1,024, nothing else true: found by BH, by max-T?

    A sink (log spread over SINK) of g = 2 has most of its spread from a few prompts; it is harder
    to tell from chance and has rows of its own.
    """
    hits, category, flat = {}, labels(n)[0], dict.fromkeys(CATEGORIES, 1.0)
    for i in range(n_datasets):
        world = draw_world(rng, 32, 32)
        values = simulate(rng, world, n, 1, (flat,))[0][:, 0].reshape(4 * n, -1)
        a, b = (values[category == c] for c in ("self_referent", "neutral"))
        sink = world.spread.ravel() > SINK
        for what in (False, True):
            raised, at = a.copy(), rng.choice(np.flatnonzero(sink == what))
            raised[:, at] += 2 * np.sqrt((a[:, at].var() + b[:, at].var()) / 2)
            found = resampling.infer_difference(raised, b, False, resampling.N_RESAMPLES, i)
            hits.setdefault((what, "BH"), []).append(contrasts.q_values(found.p)[at] < 0.05)
            hits.setdefault((what, "max-T"), []).append(found.p_max[at] < 0.05)
    names = {False: "one head", True: "one sink"}
    return [
        (f"{names[w]} of g = 2 in 1,024", n, m, x, "power" if w or m == "max-T" else "found")
        for (w, m), x in hits.items()
    ]


def random_head_rows(rng, n, n_datasets):
    """Plans of 3 and of 10 heads drawn at random from 30 layers of 9: does the set test find them?

    The five effects of a head are log-normal (log spread 1) and correlated; heads differ, as real
    ones do, and layers too.
    """
    seen, metrics = {}, 5
    for _ in range(5 * n_datasets):
        common = rng.normal(size=(30, 9, 1)) + rng.normal(size=(30, 1, 1))
        effects = np.exp(0.8 * common + 0.6 * rng.normal(size=(30, 9, metrics)))
        for size in (3, 10):
            heads = rng.choice(270, size, replace=False)
            chosen = np.isin(np.arange(270), heads).reshape(30, 9)
            layers = np.flatnonzero(chosen.any(axis=1))
            p = [
                rank_test([(rank_sizes(effects[i, :, m]), chosen[i]) for i in layers]).p
                for m in range(metrics)
            ]
            seen.setdefault((size, "random heads"), []).append(np.mean(np.array(p) <= 0.05))
            seen.setdefault((size, "family"), []).append((contrasts.q_values(p) < 0.05).any())
    return [
        (f"plan of {size} random heads", n, "any metric, q" if k == "family" else RANKS, x, k)
        for (size, k), x in seen.items()
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
            p = index_inference.infer_indices(instruct, category, None, base, DRAWS, block)["rfc"].p
            hits.append((p < 0.05).reshape(BLOCK, -1).mean(axis=1))
        rows.append(
            (
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
        inferred = index_inference.infer_indices(values, category, pair_id, None, DRAWS, i)
        for index, (_, low, high, *_) in inferred.items():
            hits[index].append(((low <= truth[index]) & (truth[index] <= high)).mean())
    return [
        (f"position-matched {index.upper()}", n, "bootstrap-t", x, "coverage")
        for index, x in hits.items()
    ]


def effect_size_rows(rng, n, n_datasets):
    """Coverage of the interval of Hedges g, true g = 0.8: two shapes, unpaired and paired."""
    rows = []
    for shape in ("normal", "log-normal 0.3"):
        for how in ("unpaired", "paired", "spread 2 : 1"):
            z = rng.normal(size=(2, n, n_datasets))
            if how == "paired":
                z[1] = 0.7 * z[0] + np.sqrt(0.51) * z[1]
            s = 0.3
            a, b = z if shape == "normal" else (np.exp(s * z) - np.exp(s**2 / 2))
            unit = 1.0 if shape == "normal" else np.sqrt(np.expm1(s**2) * np.exp(s**2))
            a = 2 * a if how == "spread 2 : 1" else a
            spread = unit * (np.sqrt(2.5) if how == "spread 2 : 1" else 1.0)
            low, high = contrasts.hedges_g_interval(a + 0.8 * spread, b, how == "paired")
            inside = (low <= 0.8) & (high >= 0.8)
            rows.append((f"Hedges g, {shape}", n, how, inside, "coverage"))
    return rows
