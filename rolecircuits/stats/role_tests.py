"""What a run says about its layers and heads, tested: numbers in, rows of tables out.

    layer_metrics(run)               RFC and RSI of every layer, five ways, with interval, null
                                     and tests
    contrast_layers(run, contrasts)  differences between categories, layer by layer
    contrast_heads(run, contrasts)   the same of every head, with Hedges g
    rank_heads(tests)                the heads as rows, strongest first

A family for q and max-T is all layers of one kind and index, or all heads of one contrast.
"""

import numpy as np

from rolecircuits.inputs.arguments import ALPHA, DEFAULT_SEED
from rolecircuits.stats import indices
from rolecircuits.stats.contrasts import compare_categories, compare_sides, contrast_sides, q_values
from rolecircuits.stats.moments import defined_mean, divide
from rolecircuits.stats.resampling import (
    N_RESAMPLES,
    infer_indices,
    mean_difference_interval,
    mean_interval,
)
from rolecircuits.stats.units import frame_values, labels_of, strata_of

MATCHED = {
    "position_matched": indices.position_matched_values,
    "first_word_matched": indices.first_word_matched_values,
}
LAYER_KINDS = (*indices.KINDS, *MATCHED)
MEASURES = ("difference", "g", "g_low", "g_high", "p", "q", "p_max")


def infer_layers(run, kind="normalised", seed=DEFAULT_SEED, n_resamples=N_RESAMPLES):
    """{index: {"estimate", "low", "high", "null", "p", "q", "p_max"}} of RFC and RSI, each [layer].

    p tests index = null. Normalised and sink-free: `compare_sides` (RFC: self against neutral,
    RSI: confounder against self). Raw: bootstrap-t against the index of uniform attention on the
    same prompts. Matched on position or first word: bootstrap-t.
    """
    matched = MATCHED.get(kind)
    values = matched(run) if matched else indices.layer_values(run, kind)
    values, labels = frame_values(run, values), labels_of(run)
    null, draws = indices.layer_null(run, "normalised" if matched else kind), (n_resamples, seed)
    inferred = tests = infer_indices(values, *labels, None, *draws)
    if kind == "raw":
        uniform = frame_values(run, indices.null_values(run, "raw"))
        tests = infer_indices(values, *labels, uniform, *draws)
    elif not matched:
        tests = {
            index: compare_sides(values, *labels, (other, "self_referent"), *draws)[0]
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


def contrast_heads(run, contrasts, seed=DEFAULT_SEED):
    """{contrast: {measure: [layer, head]}} of normalised values; contrasts {name: contrast}."""
    values, labels = frame_values(run, indices.prompt_values(run, "normalised")), labels_of(run)
    return {
        name: compare_categories(values, *labels, contrast, seed=seed)
        for name, contrast in contrasts.items()
    }


def contrast_layers(run, contrasts, seed=DEFAULT_SEED):
    """Rows of contrasts.csv: one a contrast and layer, of normalised and of sink-free values.

    difference is first - second with its 95 % interval; share is the difference divided by the
    mean of the second side.
    """
    labels, rows = labels_of(run), []
    for name, contrast in contrasts.items():
        for kind in ("normalised", "sinkfree"):
            values = frame_values(run, indices.layer_values(run, kind))
            a, b, paired = contrast_sides(values, *labels, contrast)
            tests = compare_categories(values, *labels, contrast, seed=seed)
            _, low, high = mean_difference_interval(a, b, paired, seed=seed)
            share = divide(tests["difference"], defined_mean(b, axis=0))
            columns = {"difference": tests["difference"], "low": low, "high": high, "share": share}
            columns |= {measure: tests[measure] for measure in ("g", "p", "q", "p_max")}
            labelled = {"contrast": name, "kind": kind, "n": len(a), "paired": paired}
            rows += [
                labelled
                | {"layer": layer}
                | {key: column[layer] for key, column in columns.items()}
                for layer in range(run.n_layers)
            ]
    return rows


def rows_of(compared, name, kind="normalised"):
    """The rows of contrasts.csv of one contrast and kind, layer by layer."""
    return [row for row in compared if row["contrast"] == name and row["kind"] == kind]


def contrast_cells(name, compared):
    """Cells of one contrast over its layers: mean, extremes, and how many layers pass."""
    rows = rows_of(compared, name)
    value = np.array([row["difference"] for row in rows])
    paired = " (paired)" if rows[0]["paired"] else ""
    if np.isnan(value).all():
        return [name, f"{rows[0]['n']}{paired}", "undefined", "-", "-", "-"]
    ends = [f"{value[at]:+.4f} @{at}" for at in (np.nanargmin(value), np.nanargmax(value))]
    passed = [sum(row[test] < ALPHA for row in rows) for test in ("p", "q", "p_max")]
    counts = " / ".join(map(str, passed)) + f" of {len(rows)}"
    return [name, f"{rows[0]['n']}{paired}", f"{np.nanmean(value):+.4f}", *ends, counts]


def interaction_cells(names, compared):
    """Rows of cells, one a layer: difference with interval, q and max-T p of every contrast."""
    columns = [rows_of(compared, name) for name in names]
    return [
        [
            rows[0]["layer"],
            *(
                f"{row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}] "
                f"{row['q']:.3f} {row['p_max']:.3f}"
                for row in rows
            ),
        ]
        for rows in zip(*columns, strict=True)
    ]


def describe_interactions(names, compared):
    """One line: how large every family is over its layers, the control among them."""
    sizes = []
    for name in names:
        value = np.array([row["difference"] for row in rows_of(compared, name)])
        sizes.append(f"{name} {np.sqrt(np.nanmean(value**2)):.4f}")
    return (
        f"root mean square over layers: {', '.join(sizes)}; what the control shows as well is not "
        "about the model"
    )


def split_units(category, unit, seed=DEFAULT_SEED):
    """True for the rows that choose heads: a random half of the units, frames and pairs whole."""
    rng, chosen = np.random.default_rng(seed), np.zeros(len(category), dtype=bool)
    for stratum in strata_of(category, unit):
        half = rng.permutation(stratum.shape[1])[: stratum.shape[1] // 2]
        chosen[stratum[:, half].ravel()] = True
    return chosen


def strongest_heads(size, n):
    """The n (layer, head) with the largest defined |size| [layer, head], largest first."""
    order = np.argsort(-np.nan_to_num(np.abs(size), nan=-1.0), axis=None, kind="stable")[:n]
    heads = [divmod(int(i), size.shape[1]) for i in order]
    return [head for head in heads if not np.isnan(size[head])]


def rank_heads(contrasts, run):
    """Rows of head_ranking.csv, the strongest |g| of the first contrast first.

    By |difference| where no g is defined. A run with slots has the mean attention of the final
    query on them, by category, beside that of uniform attention.
    """
    masses = slot_masses(run) if run.has_slots else {}
    first = next(iter(contrasts.values()))
    strength = np.abs(first["g"] if np.isfinite(first["g"]).any() else first["difference"])
    order = np.argsort(-np.nan_to_num(strength, nan=-1.0), axis=None, kind="stable")
    rows = []
    for rank, i in enumerate(order, 1):
        layer, head = divmod(int(i), strength.shape[1])
        row = {"rank": rank, "layer": layer, "head": head}
        for name, measures in contrasts.items():
            row |= {f"{name}_{measure}": measures[measure][layer, head] for measure in MEASURES}
        rows.append(row | {name: mass[layer, head] for name, mass in masses.items()})
    return rows


def slot_masses(run):
    """{"slot_mass_<category>" and "slot_uniform": [layer, head]}, means over prompts."""
    masses = {
        f"slot_mass_{name}": run.slot_mass[run.category == name].mean(axis=0, dtype=np.float64)
        for name in run.counts
    }
    uniform = run.slot_uniform.mean(axis=0, dtype=np.float64)[:, None]
    return masses | {"slot_uniform": np.repeat(uniform, run.n_heads, axis=1)}


def summarise_categories(run, seed=DEFAULT_SEED):
    """Rows of category_summary.csv, one a kind and category: means over layers and heads."""
    rows, category = [], labels_of(run)[0]
    for kind in indices.KINDS:
        values = frame_values(run, indices.layer_values(run, kind).mean(axis=1))
        for name, n in run.counts.items():
            chosen, own = run.category == name, values[category == name]
            row = {"category": name, "kind": kind, "n_prompts": n, "n_units": len(own)}
            row["mean_tokens"] = run.n_tokens[chosen].mean()
            row["mean_own_tokens"] = np.diff(run.span[chosen]).mean()
            interval = (float(x) for x in mean_interval(own, seed=seed))
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
    Indices whose categories the run lacks have no line, and a crossed set none for what is matched
    on the first word, which is the normalised index there.
    """
    estimates = {}
    lines = [f"{name}: {describe_survivors('head', tests)}" for name, tests in contrasts.items()]
    for kind in ("normalised", "sinkfree", *MATCHED):
        for index in indices.INDICES:
            rows = [row for row in layers if row["kind"] == kind and row["index"] == index]
            tests = {name: [row[name] for row in rows] for name in ("p", "q", "p_max")}
            estimates[kind, index] = np.array([row["estimate"] for row in rows])
            again = np.array_equal(estimates[kind, index], estimates["normalised", index])
            if np.isnan(estimates[kind, index]).all() or (kind == "first_word_matched" and again):
                continue
            lines.append(f"{kind} {index.upper()}: {describe_survivors('layer', tests)}")
    return [*lines, "each line is one family: its corrections hold inside it, not across lines"]
