"""What a run says about its layers and heads, tested: numbers in, rows of tables out.

    layer_metrics(run)     RFC and RSI of every layer, four ways, with interval, null and tests
    contrast_heads(run)    every head's differences between categories with Hedges g and tests
    rank_heads(contrasts)  the heads as rows, strongest first

A family for q and max-T is all layers of one kind and index, or all heads of one contrast.
"""

import numpy as np

from rolecircuits.inputs.arguments import ALPHA, DEFAULT_SEED
from rolecircuits.stats import indices
from rolecircuits.stats.contrasts import available_contrasts, compare_categories, q_values
from rolecircuits.stats.permutation import permutation_test
from rolecircuits.stats.resampling import N_RESAMPLES, infer_indices, mean_interval, pair_rows

LAYER_KINDS = (*indices.KINDS, "position_matched")
MEASURES = ("difference", "g", "g_low", "g_high", "p", "q", "p_max")


def infer_layers(run, kind="normalised", seed=DEFAULT_SEED, n_resamples=N_RESAMPLES):
    """{index: {"estimate", "low", "high", "null", "p", "q", "p_max"}} of RFC and RSI, each [layer].

    p tests index = null. Normalised and sink-free: permutation test (RFC: self against neutral,
    RSI: confounder against self). Raw: bootstrap-t against the index of uniform attention on the
    same prompts. Position-matched: bootstrap-t.
    """
    matched = kind == "position_matched"
    values = indices.position_matched_values(run) if matched else indices.layer_values(run, kind)
    null = indices.layer_null(run, "normalised" if matched else kind)
    labels, draws = (run.category, run.pair_id), (n_resamples, seed)
    inferred = tests = infer_indices(values, *labels, None, *draws)
    if kind == "raw":
        tests = infer_indices(values, *labels, indices.null_values(run, "raw"), *draws)
    elif not matched:
        of = {name: values[run.category == name] for name in indices.INDEX_CATEGORIES}
        tests = {
            index: permutation_test(of[other], of["self_referent"], *draws)
            for index, other in (("rfc", "neutral"), ("rsi", "confounder"))
        }
    layers = {}
    for index, test in tests.items():
        layers[index] = dict(zip(("estimate", "low", "high"), inferred[index][:3], strict=True))
        layers[index] |= {"null": null[index], "p": test.p, "q": q_values(test.p)}
        layers[index]["p_max"] = test.p_max
    return layers


def layer_metrics(run, seed=DEFAULT_SEED):
    """Rows of layer_metrics.csv: one a kind, index and layer."""
    return [
        {"layer": layer, "kind": kind, "index": index}
        | {name: column[layer] for name, column in numbers.items()}
        for kind in LAYER_KINDS
        for index, numbers in infer_layers(run, kind, seed).items()
        for layer in range(run.n_layers)
    ]


def contrast_heads(run, seed=DEFAULT_SEED):
    """{contrast: {measure: [layer, head]}} of normalised values, for the contrasts the run has."""
    values, labels = indices.prompt_values(run, "normalised"), (run.category, run.pair_id)
    return {
        name: compare_categories(values, *labels, pair, seed=seed)
        for name, pair in available_contrasts(run.category).items()
    }


def split_prompts(category, pair_id, seed=DEFAULT_SEED):
    """True for the prompts that choose heads: a random half of each category, pairs together."""
    rng = np.random.default_rng(seed)
    chosen, alone = np.zeros(len(category), dtype=bool), np.ones(len(category), dtype=bool)
    pairs = pair_rows(category, pair_id)
    groups = [] if pairs is None else [np.stack(pairs)]
    alone[np.ravel(groups).astype(int)] = False
    groups += [np.flatnonzero((category == name) & alone)[None] for name in dict.fromkeys(category)]
    for group in groups:
        half = rng.permutation(group.shape[1])[: group.shape[1] // 2]
        chosen[group[:, half].ravel()] = True
    return chosen


def strongest_heads(size, n):
    """The n (layer, head) with the largest defined |size| [layer, head], largest first."""
    order = np.argsort(-np.nan_to_num(np.abs(size), nan=-1.0), axis=None, kind="stable")[:n]
    heads = [divmod(int(i), size.shape[1]) for i in order]
    return [head for head in heads if not np.isnan(size[head])]


def rank_heads(contrasts):
    """Rows of head_ranking.csv, the strongest |g| of the first contrast first.

    By |difference| where no g is defined.
    """
    first = next(iter(contrasts.values()))
    strength = np.abs(first["g"] if np.isfinite(first["g"]).any() else first["difference"])
    order = np.argsort(-np.nan_to_num(strength, nan=-1.0), axis=None, kind="stable")
    rows = []
    for rank, i in enumerate(order, 1):
        layer, head = divmod(int(i), strength.shape[1])
        row = {"rank": rank, "layer": layer, "head": head}
        for name, measures in contrasts.items():
            row |= {f"{name}_{measure}": measures[measure][layer, head] for measure in MEASURES}
        rows.append(row)
    return rows


def summarise_categories(run, seed=DEFAULT_SEED):
    """Rows of category_summary.csv, one a kind and category: means over layers and heads."""
    rows = []
    for kind in indices.KINDS:
        values = indices.layer_values(run, kind).mean(axis=1)
        for name, n in run.counts.items():
            chosen = run.category == name
            row = {"category": name, "kind": kind, "n_prompts": n}
            row["mean_tokens"] = run.n_tokens[chosen].mean()
            row["mean_own_tokens"] = np.diff(run.span[chosen]).mean()
            interval = (float(x) for x in mean_interval(values[chosen], seed=seed))
            row |= dict(zip(("entropy", "low", "high"), interval, strict=True))
            rows.append(row | {"sink_mass": np.nanmean(run.sink_mass[chosen])})
    return rows


def describe_survivors(what, tests):
    """One line on a family of tests: what passes BH and max-T at ALPHA, or that nothing does."""
    p, q, p_max = (np.ravel(tests[key]) for key in ("p", "q", "p_max"))
    tested = int(np.isfinite(p).sum())
    if not tested:
        return f"no {what} could be tested"
    alone, by_bh, by_max = (int((x < ALPHA).sum()) for x in (p, q, p_max))
    uncorrected = f"uncorrected p < {ALPHA}: {alone} of {tested}"
    uncorrected += f", {ALPHA * tested:.1f} expected by chance"
    if not by_bh and not by_max:
        return f"no {what} survives max-T/BH at {ALPHA} ({uncorrected})"
    return f"{by_max} of {tested} {what}s survive max-T and {by_bh} BH at {ALPHA} ({uncorrected})"


def list_verdicts(layers, contrasts):
    """One line a family of tests: the heads of every contrast, the layers of every index.

    layers  rows of `layer_metrics`      contrasts  as `contrast_heads` gives them
    """
    lines = [f"{name}: {describe_survivors('head', tests)}" for name, tests in contrasts.items()]
    for kind in ("normalised", "sinkfree", "position_matched"):
        for index in indices.INDICES:
            rows = [row for row in layers if row["kind"] == kind and row["index"] == index]
            tests = {name: [row[name] for row in rows] for name in ("p", "q", "p_max")}
            lines.append(f"{kind} {index.upper()}: {describe_survivors('layer', tests)}")
    return lines
