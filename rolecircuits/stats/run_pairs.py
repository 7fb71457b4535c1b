"""Two runs over the same prompts: which prompts match, and what differs between the runs, with paired intervals.

    difference = instruct - base, on the prompts that both runs hold (same category, same text), in the same order

A resample draws the same prompts for both runs: they share their prompts, so which ones happened to be chosen must not
widen the interval of their difference.
"""

import numpy as np

from rolecircuits.inputs.categories import REQUIRED
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.specs import same_weights
from rolecircuits.stats.contrasts import q_values
from rolecircuits.stats.indices import INDICES, KINDS, layer_indices, layer_null, layer_values
from rolecircuits.stats.original_study import (
    head_difference_interval,
    head_interval,
    original_head_indices,
)
from rolecircuits.stats.resampling import (
    MIN_PROMPTS,
    bootstrap_counts,
    has_enough_prompts,
    infer_indices,
    percentile_interval,
    resampled_indices,
)
from rolecircuits.stats.role_tests import ALPHA, infer_layers

SEED = 0
TESTS = ("p", "q", "p_max")
RUNS = ("base", "instruct")
NEEDED = {"rfc": REQUIRED, "rsi": ("self_referent", "confounder", "neutral")}


def match_runs(base, instruct):
    """({"base": Run, "instruct": Run} cut to their common prompts in the same order, notes); UserError if incomparable."""
    if (base.n_layers, base.n_heads) != (instruct.n_layers, instruct.n_heads):
        raise UserError(
            f"--base_dir {base.path}: base has {base.n_layers} layers x {base.n_heads} heads, instruct has "
            f"{instruct.n_layers} layers x {instruct.n_heads} heads; compare two runs of one architecture"
        )
    places = {key: row for row, key in enumerate(_prompt_keys(instruct))}
    rows = {key: row for row, key in enumerate(_prompt_keys(base)) if key in places}
    keys = sorted(rows, key=rows.get)
    runs = {
        "base": base.take([rows[key] for key in keys]),
        "instruct": instruct.take([places[key] for key in keys]),
    }
    for name in REQUIRED:
        if name not in runs["base"].counts:
            raise UserError(
                f"--base_dir {base.path}, --instruct_dir {instruct.path}: no {name} prompt is in both runs; both need "
                "the same prompts"
            )
    return runs, _pair_notes({"base": base, "instruct": instruct}, runs)


def _prompt_keys(run):
    return [
        (category, row["text"])
        for category, row in zip(run.category.tolist(), run.prompts, strict=True)
    ]


def _pair_notes(whole, matched):
    """What a reader must know about two runs before the numbers: `whole` as loaded, `matched` cut to common prompts."""
    base, instruct = whole["base"], whole["instruct"]
    n, notes = len(matched["base"].category), []
    if base.path is not None and base.path == instruct.path:
        notes.append(
            f"base and instruct are the same run ({printable(base.path)}): every difference is 0"
        )
    if same_weights(base.config["model"], instruct.config["model"]):
        notes.append(f"{describe_pair(base, instruct)}: the differences are no effect of training")
    if base.prompt_format != instruct.prompt_format:
        notes.append(
            "formats differ: raw values count the BOS row in raw format, only the text's own rows in chat format"
        )
    for side in RUNS:
        missing = {c: k - matched[side].counts.get(c, 0) for c, k in whole[side].counts.items()}
        if any(missing.values()):
            what = ", ".join(f"{k} {c}" for c, k in missing.items() if k)
            notes.append(
                f"{side}: left out {what}, not in the other run; {n} of {len(whole[side].category)} compared"
            )
    hashes = [run.config["model"].get("tokenizer_sha256") for run in (base, instruct)]
    if all(hashes) and hashes[0] != hashes[1]:
        notes.append("the two runs have different tokenizers or chat templates")
    own = int(
        (np.ptp(matched["base"].span, axis=1) != np.ptp(matched["instruct"].span, axis=1)).sum()
    )
    fed = int((matched["base"].n_tokens != matched["instruct"].n_tokens).sum())
    if own or fed:
        notes.append(
            f"of {n} prompts {own} differ in tokens of their own text and {fed} in tokens fed"
        )
    return notes


def describe_pair(base, instruct):
    """What the difference is a difference of, for titles and tables."""
    if not same_weights(base.config["model"], instruct.config["model"]):
        return "two models"
    if base.prompt_format == instruct.prompt_format:
        return f"same weights, same framing: {base.prompt_format}"
    return f"same weights, two framings: {base.prompt_format} | {instruct.prompt_format}"


def describe_run(run):
    """The facts of a run that a comparison records."""
    model = run.config["model"]
    facts = {
        name: model.get(name) for name in ("id", "revision", "weights_sha256", "tokenizer_sha256")
    }
    return {"run": run.path.name, "label": run.label, "prompt_format": run.prompt_format, **facts}


def missing_interval_reason(category, index):
    """Why this index gets no interval, or None if it gets one."""
    n = {name: int((category == name).sum()) for name in NEEDED[index]}
    absent = [name for name in n if not n[name]]
    if absent:
        return (
            f"{index.upper()} is undefined: no {' and no '.join(absent)} prompts are in both runs"
        )
    if has_enough_prompts(category[np.isin(category, NEEDED[index])]):
        return None
    found = ", ".join(f"{n[name]} {name}" for name in n)
    return f"no intervals for {index.upper()}: they need {MIN_PROMPTS} prompts of each category, there are {found}"


def estimate_pair(runs):
    """({kind: {index: {"base" | "instruct" | "diff": estimate}}}, {index: why it has no interval, or None}).

    An estimate holds value, low, high, null, p, q and p_max, each [layer]; "diff" also the interval of its mean over the
    defined layers, `mean_interval` (percentile, from the same draws). p of a run is that of index = null, p of a
    difference that of equal indices, whatever the scale of either model's entropies. Raw differences are not tested: raw
    indices also differ where only lengths do. Numbers left out are NaN, or None.
    """
    base = runs["base"]
    reasons = {index: missing_interval_reason(base.category, index) for index in INDICES}
    return {kind: _estimate_kind(runs, kind, reasons) for kind in KINDS}, reasons


def _estimate_kind(runs, kind, reasons):
    category, pair_id = runs["base"].category, runs["base"].pair_id
    values = {name: layer_values(run, kind) for name, run in runs.items()}
    tests = {name: infer_layers(run, kind, SEED) for name, run in runs.items()}
    found = infer_indices(values["instruct"], category, pair_id, values["base"], seed=SEED)
    null = {name: layer_null(run, kind) for name, run in runs.items()}
    counts = bootstrap_counts(category, pair_id, seed=SEED)
    draws = {name: resampled_indices(side, category, counts) for name, side in values.items()}
    out = {}
    for index in INDICES:
        sides = {
            name: tests[name][index] | {"value": tests[name][index]["estimate"]} for name in RUNS
        }
        value, low, high, p, p_max = found[index]
        diff = {"value": value, "low": low, "high": high, "p": p, "q": q_values(p), "p_max": p_max}
        if kind == "raw":
            diff |= dict.fromkeys(TESTS, np.full(len(value), np.nan))
        diff["null"] = null["instruct"][index] - null["base"][index]
        defined = ~np.isnan(value)
        shift = draws["instruct"][index] - draws["base"][index]
        intervals = reasons[index] is None and defined.any()
        diff["mean_interval"] = (
            percentile_interval(shift[:, defined].mean(axis=1)) if intervals else None
        )
        out[index] = sides | {"diff": diff}
    return out


def estimate_original(runs):
    """The original study's estimator: {index: {"base" | "instruct": head_interval, "diff": head_difference_interval}}."""
    heads = {name: original_head_indices(run) for name, run in runs.items()}
    out = {}
    for index in INDICES:
        sides = {name: head_interval(heads[name][index]) for name in RUNS}
        out[index] = {**sides, "diff": head_difference_interval(**sides)}
    return out


def summarise_difference(diff):
    """Mean, minimum and maximum over layers, and how many layers differ from 0; None where undefined.

    layers_excluding_zero is uncorrected (0.05 L of L layers do so by chance); layers_q_below_alpha passes
    Benjamini-Hochberg, layers_p_max_below_alpha max-T over layers.
    """
    value = diff["value"]
    layers = np.flatnonzero(~np.isnan(value))
    out = {"layers_undefined": int(len(value) - len(layers)), "layers": len(value)}
    keys = (
        "mean",
        "min",
        "min_layer",
        "max",
        "max_layer",
        "length_null_mean",
        "mean_ci_low",
        "mean_ci_high",
    )
    out |= dict.fromkeys(
        (*keys, "layers_excluding_zero", "layers_q_below_alpha", "layers_p_max_below_alpha")
    )
    if not len(layers):
        return out
    low, high = (layers[np.argmin(value[layers])], layers[np.argmax(value[layers])])
    out |= {"mean": float(value[layers].mean()), "min": float(value[low]), "min_layer": int(low)}
    out |= {"max": float(value[high]), "max_layer": int(high)}
    if "null" in diff:
        out["length_null_mean"] = float(diff["null"][layers].mean())
    if not np.isnan(diff["low"]).all():
        out["layers_excluding_zero"] = int(((diff["low"] > 0) | (diff["high"] < 0)).sum())
    if diff.get("mean_interval") is not None:
        out["mean_ci_low"], out["mean_ci_high"] = (float(end) for end in diff["mean_interval"])
    for name in ("q", "p_max"):
        if not np.isnan(diff.get(name, np.nan)).all():
            out[f"layers_{name}_below_alpha"] = int((diff[name] < ALPHA).sum())
    return out


def main_numbers(runs, summary):
    """Rows of texts, one an index and kind: means over layers of both runs, and their difference.

    runs     {"base": Run, "instruct": Run}; each mean stands beside its length null
    summary  what comparison_summary.json holds, for intervals; None leaves them out
    """
    rows = []
    for index in INDICES:
        for kind in KINDS:
            values = [layer_indices(run, kind)[index].mean() for run in runs.values()]
            nulls = [layer_null(run, kind)[index].mean() for run in runs.values()]
            cells = [f"{v:+.3f} ({null:+.3f})" for v, null in zip(values, nulls, strict=True)]
            entry = {} if summary is None else summary["differences"][kind][index]
            difference = f"{values[1] - values[0]:+.3f}"
            if entry.get("mean_ci_low") is not None:
                interval = f"[{entry['mean_ci_low']:+.3f}, {entry['mean_ci_high']:+.3f}]"
                difference = f"{entry['mean']:+.3f} {interval}"
            rows.append([f"{index.upper()} {kind}", *cells, difference])
    return rows
