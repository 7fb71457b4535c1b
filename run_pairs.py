"""Two runs over the same prompts: which prompts match, and what differs between the runs, with paired intervals.

    difference = instruct - base, on the prompts that both runs hold (same category, same text), in the same order

A resample draws the same prompts for both runs: they share their prompts, so which ones happened to be chosen must not
widen the interval of their difference.
"""

import dataclasses

import numpy as np

from cli import UserError, printable
from output_manager import ARRAYS
from prompts import REQUIRED
from resampling import (
    MIN_PROMPTS,
    bootstrap_counts,
    has_enough_prompts,
    head_difference_interval,
    head_interval,
    percentile_interval,
    resampled_indices,
    simultaneous_band,
)
from role_metrics import INDICES, KINDS, index_values, layer_null, layer_values, original_head_indices

SEED = 0
RUNS = ("base", "instruct")
NEEDED = {"rfc": REQUIRED, "rsi": ("self_referent", "confounder", "neutral")}


def match_runs(base, instruct):
    """({"base": Run, "instruct": Run} cut to their common prompts in the same order, notes); UserError if incomparable."""
    if (base.n_layers, base.n_heads) != (instruct.n_layers, instruct.n_heads):
        raise UserError(
            f"--base_dir {base.path}: base has {base.n_layers} layers x {base.n_heads} heads, instruct has "
            f"{instruct.n_layers} layers x {instruct.n_heads} heads; compare two runs of one architecture"
        )
    places = dict(reversed([(key, row) for row, key in enumerate(_prompt_keys(instruct))]))
    rows = dict(reversed([(key, row) for row, key in enumerate(_prompt_keys(base)) if key in places]))
    keys = sorted(rows, key=rows.get)
    runs = {
        "base": take_prompts(base, [rows[key] for key in keys]),
        "instruct": take_prompts(instruct, [places[key] for key in keys]),
    }
    for name in REQUIRED:
        if name not in runs["base"].counts:
            raise UserError(
                f"--base_dir {base.path}, --instruct_dir {instruct.path}: no {name} prompt is in both runs; both need "
                "the same prompts"
            )
    return runs, _pair_notes({"base": base, "instruct": instruct}, runs)


def _prompt_keys(run):
    return [(category, row["text"]) for category, row in zip(run.category.tolist(), run.prompts, strict=True)]


def take_prompts(run, rows):
    """The same Run with only these prompts, in this order."""
    rows = np.asarray(rows, dtype=int)
    arrays = {name: getattr(run, name)[rows] for name, (_, axes) in ARRAYS.items() if axes[0] == "prompt"}
    return dataclasses.replace(run, prompts=[run.prompts[row] for row in rows], **arrays)


def _pair_notes(whole, matched):
    """What a reader must know about two runs before the numbers: `whole` as loaded, `matched` cut to common prompts."""
    base, instruct = whole["base"], whole["instruct"]
    n, notes = len(matched["base"].category), []
    if base.path is not None and base.path == instruct.path:
        notes.append(f"base and instruct are the same run ({printable(base.path)}): every difference is 0")
    if same_weights(base, instruct):
        notes.append(f"{describe_pair(base, instruct)}: the differences are no effect of training")
    if base.prompt_format != instruct.prompt_format:
        notes.append(
            "formats differ: raw values count the BOS row in raw format, only the text's own rows in chat format"
        )
    for side in RUNS:
        missing = {c: k - matched[side].counts.get(c, 0) for c, k in whole[side].counts.items()}
        if any(missing.values()):
            what = ", ".join(f"{k} {c}" for c, k in missing.items() if k)
            notes.append(f"{side}: left out {what}, not in the other run; {n} of {len(whole[side].category)} compared")
    hashes = [run.config["model"].get("tokenizer_sha256") for run in (base, instruct)]
    if all(hashes) and hashes[0] != hashes[1]:
        notes.append("the two runs have different tokenizers or chat templates")
    own = int((np.ptp(matched["base"].span, axis=1) != np.ptp(matched["instruct"].span, axis=1)).sum())
    fed = int((matched["base"].n_tokens != matched["instruct"].n_tokens).sum())
    if own or fed:
        notes.append(f"of {n} prompts {own} differ in tokens of their own text and {fed} in tokens fed")
    return notes


def same_weights(base, instruct):
    """True if both runs hold the same weights: the same hash, or where one is unknown the same id and revision."""
    models = [run.config["model"] for run in (base, instruct)]
    hashes = [model.get("weights_sha256") for model in models]
    if all(hashes):
        return hashes[0] == hashes[1]
    return (models[0]["id"], models[0].get("revision")) == (models[1]["id"], models[1].get("revision"))


def describe_pair(base, instruct):
    """What the difference is a difference of, for titles and tables."""
    if not same_weights(base, instruct):
        return "two models"
    if base.prompt_format == instruct.prompt_format:
        return f"same weights, same framing: {base.prompt_format}"
    return f"same weights, two framings: {base.prompt_format} | {instruct.prompt_format}"


def describe_run(run):
    """The facts of a run that a comparison records."""
    model = run.config["model"]
    facts = {name: model.get(name) for name in ("id", "revision", "weights_sha256", "tokenizer_sha256")}
    return {"run": run.path.name, "label": run.label, "prompt_format": run.prompt_format, **facts}


def missing_interval_reason(category, index):
    """Why this index gets no interval, or None if it gets one."""
    n = {name: int((category == name).sum()) for name in NEEDED[index]}
    absent = [name for name in n if not n[name]]
    if absent:
        return f"{index.upper()} is undefined: no {' and no '.join(absent)} prompts are in both runs"
    if has_enough_prompts(category[np.isin(category, NEEDED[index])]):
        return None
    found = ", ".join(f"{n[name]} {name}" for name in n)
    return f"no intervals for {index.upper()}: they need {MIN_PROMPTS} prompts of each category, there are {found}"


def estimate_pair(runs):
    """({kind: {index: {"base" | "instruct" | "diff": estimate}}}, {index: why it has no interval, or None}).

    An estimate holds value, low, high and null, each [layer]; those of "diff" also hold `band`, (low, high) simultaneous
    over the defined layers, and `mean_interval`, of the mean over these layers. Intervals left out are NaN or None.
    """
    base = runs["base"]
    counts = bootstrap_counts(base.category, base.pair_id, seed=SEED)
    reasons = {index: missing_interval_reason(base.category, index) for index in INDICES}
    estimates = {}
    for kind in KINDS:
        sides = {name: _estimate_run(run, kind, counts) for name, run in runs.items()}
        estimates[kind] = {index: _estimate_index(sides, index, reasons[index]) for index in INDICES}
    return estimates, reasons


def _estimate_run(run, kind, counts):
    values, null = layer_values(run, kind), layer_null(run, kind)
    point, draws = index_values(values, run.category), resampled_indices(values, run.category, counts)
    return {index: {"value": point[index], "null": null[index], "draws": draws[index]} for index in INDICES}


def _estimate_index(sides, index, reason):
    base, instruct = sides["base"][index], sides["instruct"][index]
    diff = {part: instruct[part] - base[part] for part in base}
    out = {"base": base, "instruct": instruct, "diff": diff}
    defined = ~np.isnan(diff["value"])
    intervals = reason is None and defined.any()
    diff["band"] = simultaneous_band(diff["value"][defined], diff["draws"][:, defined]) if intervals else None
    diff["mean_interval"] = percentile_interval(diff["draws"][:, defined].mean(axis=1)) if intervals else None
    for estimate in out.values():
        nothing = np.full(defined.shape, np.nan)
        draws = estimate.pop("draws")
        estimate["low"], estimate["high"] = percentile_interval(draws) if intervals else (nothing, nothing)
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
    """Mean, minimum and maximum over layers, and how many layers' intervals exclude 0; None where undefined.

    layers_excluding_zero is pointwise (0.05 L of L layers do so by chance), _simultaneously is corrected (max-T).
    """
    value, band = diff["value"], diff.get("band")
    layers = np.flatnonzero(~np.isnan(value))
    out = {"layers_undefined": int(len(value) - len(layers)), "layers": len(value)}
    keys = ("mean", "min", "min_layer", "max", "max_layer", "length_null_mean", "mean_ci_low", "mean_ci_high")
    out |= dict.fromkeys((*keys, "layers_excluding_zero", "layers_excluding_zero_simultaneously"))
    if not len(layers):
        return out
    low, high = (layers[np.argmin(value[layers])], layers[np.argmax(value[layers])])
    out |= {"mean": float(value[layers].mean()), "min": float(value[low]), "min_layer": int(low)}
    out |= {"max": float(value[high]), "max_layer": int(high)}
    if "null" in diff:
        out["length_null_mean"] = float(diff["null"][layers].mean())
    if not np.isnan(diff["low"]).all():
        out["layers_excluding_zero"] = _count_excluding_zero(diff["low"], diff["high"])
    if band is not None:
        out["layers_excluding_zero_simultaneously"] = _count_excluding_zero(*band)
        out["mean_ci_low"], out["mean_ci_high"] = (float(end) for end in diff["mean_interval"])
    return out


def _count_excluding_zero(low, high):
    return int(((low > 0) | (high < 0)).sum())
