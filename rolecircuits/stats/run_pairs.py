"""Two runs over the same prompts: which prompts match, and what differs, with paired intervals.

    difference = instruct - base, on the prompts that both runs hold (same category, same text)

A resample draws the same prompts for both runs: they share their prompts, so which ones happened
to be chosen must not widen the interval of their difference.
"""

import numpy as np

from rolecircuits.inputs.arguments import ALPHA, DEFAULT_SEED
from rolecircuits.inputs.categories import REQUIRED
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.specs import same_weights
from rolecircuits.stats import original_study
from rolecircuits.stats.audit import contrast_reason
from rolecircuits.stats.contrasts import compare_categories, infer_contrast, q_values
from rolecircuits.stats.index_inference import COMPARED, infer_indices, infer_mean_indices
from rolecircuits.stats.indices import (
    INDEX_CATEGORIES,
    INDICES,
    KINDS,
    layer_indices,
    layer_null,
    layer_values,
)
from rolecircuits.stats.role_tests import blank_untestable, infer_layers
from rolecircuits.stats.units import frame_values, labels_of

P_VALUES = ("p", "q", "p_max")
SIDES = ("base", "instruct")
FLAGS = ("--base_dir", "--instruct_dir")
CATEGORIES_OF = {"rfc": REQUIRED, "rsi": INDEX_CATEGORIES}


def match_runs(base, instruct, flags=FLAGS):
    """({"base": Run, "instruct": Run} cut to their common prompts in the same order, notes).

    flags   those by which the two were named, for messages
    raises  UserError where layers, heads or prompts do not allow a comparison
    """
    size = [f"{run.n_layers} layers x {run.n_heads} heads" for run in (base, instruct)]
    if size[0] != size[1]:
        raise UserError(
            f"{flags[0]} {base.path}: base has {size[0]}, instruct has {size[1]}; "
            "compare two runs of one architecture"
        )
    places = {key: row for row, key in enumerate(_prompt_keys(instruct))}
    rows = {key: row for row, key in enumerate(_prompt_keys(base)) if key in places}
    keys = sorted(rows, key=rows.get)
    runs = {
        "base": base.take([rows[key] for key in keys]),
        "instruct": instruct.take([places[key] for key in keys]),
    }
    where, there = (f"{flags[0]} {base.path}, {flags[1]} {instruct.path}", set(runs["base"].counts))
    for name in REQUIRED:
        if name not in there and all(name in run.counts for run in (base, instruct)):
            raise UserError(
                f"{where}: no {name} prompt is in both runs; both need the same prompts"
            )
    if len(there) < 2:
        raise UserError(
            f"{where}: share {len(keys)} prompts of {len(there)} categories; two needed"
        )
    design = [(run.crossed, run.frame.tolist(), run.filler.tolist()) for run in runs.values()]
    if design[0] != design[1]:
        raise UserError(
            f"{where}: the same prompts are in other frames; use one prompt set for both"
        )
    return runs, _pair_notes({"base": base, "instruct": instruct}, runs)


def _prompt_keys(run):
    texts = [(row["text"], row.get("turn", "user")) for row in run.prompts]
    return list(zip(run.category.tolist(), texts, strict=True))


def _pair_notes(whole, matched):
    """What a reader must know before the numbers; `matched`: cut to the common prompts."""
    base, instruct = whole["base"], whole["instruct"]
    n, notes = len(matched["base"].category), []
    if base.path is not None and base.path == instruct.path:
        same = f"base and instruct are the same run ({printable(base.path)})"
        notes.append(f"{same}: every difference is 0")
    if same_weights(base.config["model"], instruct.config["model"]):
        notes.append(f"{describe_pair(base, instruct)}: the differences are no effect of training")
    if base.prompt_format != instruct.prompt_format:
        notes.append(
            "formats differ: raw values count the BOS row in raw format, only the text's own rows "
            "in chat format"
        )
    for side in SIDES:
        missing = {c: k - matched[side].counts.get(c, 0) for c, k in whole[side].counts.items()}
        if any(missing.values()):
            what = ", ".join(f"{k} {c}" for c, k in missing.items() if k)
            compared = f"{n} of {len(whole[side].category)} compared"
            notes.append(f"{side}: left out {what}, not in the other run; {compared}")
    hashes = [run.config["model"].get("tokenizer_sha256") for run in (base, instruct)]
    if all(hashes) and hashes[0] != hashes[1]:
        notes.append("the two runs have different tokenizers or chat templates")
    tokens = [(np.ptp(run.span, axis=1), run.n_tokens) for run in matched.values()]
    own, fed = (int((a != b).sum()) for a, b in zip(*tokens, strict=True))
    if own or fed:
        differ = f"{own} differ in tokens of their own text and {fed} in tokens fed"
        notes.append(f"of {n} prompts {differ}")
    return notes


def describe_pair(base, instruct):
    """What the difference is a difference of, for titles and tables."""
    if not same_weights(base.config["model"], instruct.config["model"]):
        return "two models"
    if base.prompt_format == instruct.prompt_format:
        return f"same weights, same framing: {base.prompt_format}"
    return f"same weights, two framings: {base.prompt_format} | {instruct.prompt_format}"


def facts_of_run(run):
    """The facts of a run that a comparison records."""
    model = run.config["model"]
    names = ("id", "revision", "weights_sha256", "tokenizer_sha256")
    facts = {name: model.get(name) for name in names}
    return {"run": run.path.name, "label": run.label, "prompt_format": run.prompt_format, **facts}


def facts_of_pair(runs):
    """{column: value} by which every row of a comparison's CSV says which runs it is of."""
    facts = {f"{name}_{side}": run.facts[name] for name in ("model",) for side, run in runs.items()}
    facts["set"] = runs["base"].prompt_set
    return facts | {
        f"{name}_{side}": run.facts[name]
        for name in ("format", "run")
        for side, run in runs.items()
    }


def missing_interval_reason(run, index):
    """Why this index gets no interval, or None if it gets one."""
    absent = [name for name in CATEGORIES_OF[index] if name not in run.counts]
    if absent:
        missing = " and no ".join(absent)
        return f"{index.upper()} is undefined: no {missing} prompts are in both runs"
    reason = contrast_reason(run, COMPARED[index])
    return f"{index.upper()}: {reason}" if reason else None


def estimate_pair(runs, seed=DEFAULT_SEED, tests=None):
    """({kind: {index: {"base", "instruct", "diff": estimate}}}, {index: why no interval, or None}).

    An estimate holds estimate, low, high, null, p, q and p_max, each [layer]; "diff" also
    `mean_interval`, the interval of its mean over the layers. p of a run is that of index = null,
    p of a difference that of equal indices, whatever the scale of either model's entropies. Raw
    differences are not tested: raw indices also differ where only lengths do. Numbers left out are
    NaN, or None.
    tests  {side: {kind: what infer_layers gives}} of these runs, where it is known already
    """
    reasons = {index: missing_interval_reason(runs["base"], index) for index in INDICES}
    if tests is None:
        tests = {
            side: {kind: infer_layers(run, kind, seed) for kind in KINDS}
            for side, run in runs.items()
        }
    kinds = {kind: {side: tests[side][kind] for side in SIDES} for kind in KINDS}
    return {k: _estimate_kind(runs, k, reasons, seed, kinds[k]) for k in KINDS}, reasons


def _estimate_kind(runs, kind, reasons, seed, tests):
    labels = labels_of(runs["base"])
    values = {side: frame_values(run, layer_values(run, kind)) for side, run in runs.items()}
    null = {side: layer_null(run, kind) for side, run in runs.items()}
    differences = infer_indices(values["instruct"], *labels, values["base"], seed=seed)
    means = infer_mean_indices(values["instruct"], *labels, values["base"], seed=seed)
    out = {}
    for index in INDICES:
        value, low, high, p, p_max = differences[index][:5]
        diff = {"estimate": value, "low": low, "high": high}
        diff |= {"p": p, "q": q_values(p), "p_max": p_max}
        if reasons[index]:
            diff |= dict.fromkeys(("low", "high", *P_VALUES), np.full(len(value), np.nan))
        if kind == "raw":
            diff |= dict.fromkeys(P_VALUES, np.full(len(value), np.nan))
        diff["null"] = null["instruct"][index] - null["base"][index]
        intervals = reasons[index] is None and not np.isnan(value).all()
        diff["mean_interval"] = means[index][1:3] if intervals else None
        out[index] = {side: tests[side][index] for side in SIDES} | {"diff": diff}
    return out


def estimate_contrasts(
    runs, contrasts, seed=DEFAULT_SEED, kind="normalised", what=(*SIDES, "diff")
):
    """{contrast: {"base" | "instruct" | "diff": estimate}} of entropies of a kind, each [layer].

    An estimate holds estimate, low, high, p, q and p_max. That of a run is H_second - H_first (> 0:
    the first is the more focused); "diff" is the same contrast of instruct - base, taken prompt by
    prompt (frame by frame) first.
    what  the sides that are wanted
    """
    labels, values = labels_of(runs["base"]), {}
    for side, run in runs.items():
        values[side] = frame_values(run, layer_values(run, kind))
    values["diff"] = values["instruct"] - values["base"]
    return {
        name: {
            side: _estimate_contrast(runs["base"], values[side], labels, contrast, seed)
            for side in what
        }
        for name, contrast in contrasts.items()
    }


def _estimate_contrast(run, values, labels, contrast, seed):
    tests = compare_categories(values, *labels, contrast, seed=seed)
    tests = blank_untestable(run, contrast, tests)
    mean = infer_contrast(values.mean(axis=1), *labels, contrast, seed=seed)[1:3]
    testable = contrast_reason(run, contrast) is None
    estimate = {"estimate": tests["estimate"], "mean_interval": mean if testable else None}
    return estimate | {name: tests[name] for name in ("low", "high", *P_VALUES)}


def estimate_original(runs):
    """The original study's estimator: {index: {"base" | "instruct" | "diff": its interval}}."""
    heads = {side: original_study.original_head_indices(run) for side, run in runs.items()}
    out = {}
    for index in INDICES:
        sides = {side: original_study.head_interval(heads[side][index]) for side in SIDES}
        out[index] = sides | {"diff": original_study.head_difference_interval(**sides)}
    return out


def summarise_difference(diff):
    """Mean, minimum and maximum over layers, and how many layers differ from 0; None if undefined.

    layers_excluding_zero is uncorrected (0.05 L of L layers do so by chance);
    layers_q_below_alpha passes Benjamini-Hochberg, layers_p_max_below_alpha max-T over layers.
    """
    value = diff["estimate"]
    layers = np.flatnonzero(~np.isnan(value))
    out = {"layers_undefined": len(value) - len(layers), "layers": len(value)}
    keys = "mean min min_layer max max_layer length_null_mean mean_ci_low mean_ci_high".split()
    keys += [f"layers_{what}" for what in ("excluding_zero", "q_below_alpha", "p_max_below_alpha")]
    out |= dict.fromkeys(keys)
    if not len(layers):
        return out
    for name, extreme in (("min", np.nanargmin(value)), ("max", np.nanargmax(value))):
        out |= {name: float(value[extreme]), f"{name}_layer": int(extreme)}
    out["mean"] = float(value[layers].mean())
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


def main_numbers(runs, found):
    """Means over layers of both runs and what differs: one dict an index and kind.

    runs     {"base": Run, "instruct": Run}
    found    {side: what analyze_results.analyze returns, for the layers that pass BH; "comparison":
             what comparison_summary.json holds, for intervals}; what is not in it is left out
    returns  [{"index", "kind", "base", "instruct": (mean, length null, layers that pass BH or
             None), "difference": {"value", "low", "high", "null", "bh"}}]; undefined is NaN or None
    """
    differences = found.get("comparison", {}).get("differences", {})
    rows = []
    for index in INDICES:
        for kind in KINDS:
            row = {"index": index, "kind": kind}
            for side, run in runs.items():
                passing = [
                    test["q"] < ALPHA
                    for test in found.get(side, {}).get("layers", ())
                    if (test["kind"], test["index"]) == (kind, index) and test["q"] == test["q"]
                ]
                means = [of(run, kind)[index].mean() for of in (layer_indices, layer_null)]
                row[side] = *means, sum(passing) if passing else None
            entry = differences.get(kind, {}).get(index, {})
            value, null = (row["instruct"][i] - row["base"][i] for i in (0, 1))
            row["difference"] = {
                "value": value,
                "low": entry.get("mean_ci_low"),
                "high": entry.get("mean_ci_high"),
                "null": null,
                "bh": entry.get("layers_q_below_alpha"),
            }
            rows.append(row)
    return rows
