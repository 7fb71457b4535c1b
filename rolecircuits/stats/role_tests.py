"""What a run says about its layers and heads, tested: numbers in, rows of tables out; no file, no model, no figure.

    layer_metrics(run)     RFC and RSI of every layer, four ways, with interval, null, p, q and max-T p
    contrast_heads(run)    every head's differences between categories with Hedges g, p, q and max-T p
    rank_heads(contrasts)  the heads as rows, strongest first

The estimators are role_metrics', the tests are resampling's; a family for q and max-T is all layers of one kind and
index, or all heads of one contrast.
"""

import numpy as np

from rolecircuits.stats import indices
from rolecircuits.stats.contrasts import compare_categories, q_values
from rolecircuits.stats.resampling import (
    N_RESAMPLES,
    infer_indices,
    mean_interval,
    pair_rows,
    permutation_test,
)

CONTRASTS = {
    "self_confounder": ("self_referent", "confounder"),
    "self_neutral": ("self_referent", "neutral"),
    "confounder_third": ("confounder", "third_person"),
}
KINDS = (*indices.KINDS, "position_matched")
MEASURES = ("difference", "g", "g_low", "g_high", "p", "q", "p_max")
ALPHA = 0.05
SEED = 123


def available_contrasts(category):
    """The entries of CONTRASTS whose two categories are both present; the first is the one that ranks heads."""
    present = set(np.asarray(category).tolist())
    return {name: pair for name, pair in CONTRASTS.items() if set(pair) <= present}


def infer_layers(run, kind="normalised", seed=SEED, n_resamples=N_RESAMPLES):
    """RFC and RSI of every layer: {index: {"estimate", "low", "high", "null", "p", "q", "p_max"}}, each [layer].

    p tests index = null. Normalised and sink-free: permutation test (RFC: self against neutral, RSI: confounder against
    self). Raw: bootstrap-t against the index of uniform attention on the same prompts. Position-matched: bootstrap-t.
    """
    matched = kind == "position_matched"
    values = indices.position_matched_values(run) if matched else indices.layer_values(run, kind)
    null = indices.layer_null(run, "normalised" if matched else kind)
    found = tests = infer_indices(values, run.category, run.pair_id, None, n_resamples, seed)
    if kind == "raw":
        uniform = indices.null_values(run, "raw")
        tests = infer_indices(values, run.category, run.pair_id, uniform, n_resamples, seed)
    elif not matched:
        self_referent = values[run.category == "self_referent"]
        tests = {
            "rfc": permutation_test(
                values[run.category == "neutral"], self_referent, n_resamples, seed
            ),
            "rsi": permutation_test(
                values[run.category == "confounder"], self_referent, n_resamples, seed
            ),
        }
    return {
        index: {
            "estimate": found[index].estimate,
            "low": found[index].low,
            "high": found[index].high,
        }
        | {"null": null[index], "p": test.p, "q": q_values(test.p), "p_max": test.p_max}
        for index, test in tests.items()
    }


def layer_metrics(run, seed=SEED):
    """Rows of layer_metrics.csv: one a kind, index and layer."""
    return [
        {"layer": layer, "kind": kind, "index": index}
        | {name: column[layer] for name, column in numbers.items()}
        for kind in KINDS
        for index, numbers in infer_layers(run, kind, seed).items()
        for layer in range(run.n_layers)
    ]


def contrast_heads(run, seed=SEED):
    """{contrast: {measure: [layer, head]}} of normalised values, for the contrasts whose categories the run has."""
    values = indices.prompt_values(run, "normalised")
    return {
        name: compare_categories(values, run.category, run.pair_id, *pair, seed=seed)
        for name, pair in available_contrasts(run.category).items()
    }


def split_prompts(category, pair_id, seed=SEED):
    """True for the prompts on which heads are chosen: a random half of each category, pairs kept together."""
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(category), dtype=bool)
    pairs = pair_rows(category, pair_id)
    groups = [] if pairs is None else [np.stack(pairs)]
    paired = set() if pairs is None else set(np.concatenate(pairs).tolist())
    for name in dict.fromkeys(category):
        groups.append(
            np.array([[i for i in np.flatnonzero(category == name) if i not in paired]], dtype=int)
        )
    for group in groups:
        half = rng.permutation(group.shape[1])[: group.shape[1] // 2]
        chosen[group[:, half].ravel()] = True
    return chosen


def strongest_heads(size, n):
    """The n (layer, head) with the largest |size| [layer, head], largest first; undefined ones are left out."""
    flat = np.abs(size).ravel()
    order = np.argsort(-np.where(np.isnan(flat), -1.0, flat), kind="stable")[:n]
    return [
        tuple(int(i) for i in np.unravel_index(k, size.shape))
        for k in order
        if not np.isnan(flat[k])
    ]


def rank_heads(contrasts):
    """Rows of head_ranking.csv, the strongest |g| of the first contrast first (|difference| where g is undefined)."""
    first = next(iter(contrasts.values()))
    strength = np.abs(first["g"] if np.isfinite(first["g"]).any() else first["difference"])
    rows = []
    for rank, i in enumerate(
        np.argsort(-np.nan_to_num(strength, nan=-1.0).ravel(), kind="stable"), 1
    ):
        layer, head = divmod(int(i), strength.shape[1])
        row = {"rank": rank, "layer": layer, "head": head}
        for name, measures in contrasts.items():
            row |= {f"{name}_{measure}": measures[measure][layer, head] for measure in MEASURES}
        rows.append(row)
    return rows


def summarise_categories(run, seed=SEED):
    """Rows of category_summary.csv: one a kind and category; mean over layers and heads, interval over prompts."""
    rows = []
    for kind in indices.KINDS:
        values = indices.layer_values(run, kind).mean(axis=1)
        for name, n in run.counts.items():
            chosen = run.category == name
            mean, low, high = (float(x) for x in mean_interval(values[chosen], seed=seed))
            row = {
                "category": name,
                "kind": kind,
                "n_prompts": n,
                "mean_tokens": run.n_tokens[chosen].mean(),
            }
            row |= {
                "mean_own_tokens": np.diff(run.span[chosen]).mean(),
                "entropy": mean,
                "low": low,
                "high": high,
            }
            rows.append(row | {"sink_mass": np.nanmean(run.sink_mass[chosen])})
    return rows


def describe_survivors(what, tests):
    """One line on a family of tests: what passes BH and max-T at 0.05, plainly where nothing does."""
    p, q, p_max = (np.ravel(tests[key]) for key in ("p", "q", "p_max"))
    tested = int(np.isfinite(p).sum())
    if not tested:
        return f"no {what} could be tested"
    alone, by_bh, by_max = (int((x < ALPHA).sum()) for x in (p, q, p_max))
    uncorrected = (
        f"uncorrected p < {ALPHA}: {alone} of {tested}, {ALPHA * tested:.1f} expected by chance"
    )
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
