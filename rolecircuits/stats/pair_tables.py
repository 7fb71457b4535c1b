"""What a comparison of two runs writes: detailed_comparison.csv, comparison_summary.json.

estimates  {kind: {index: {"base" | "instruct" | "diff": ...}}} as run_pairs.estimate_pair gives it
original   {index: {"base" | "instruct" | "diff": ...}} as run_pairs.estimate_original gives it
"""

from rolecircuits.inputs.arguments import DEFAULT_SEED
from rolecircuits.inputs.specs import same_weights
from rolecircuits.stats.audit import name_units
from rolecircuits.stats.indices import INDICES, KINDS
from rolecircuits.stats.resampling import CONFIDENCE, N_RESAMPLES
from rolecircuits.stats.run_pairs import (
    P_VALUES,
    SIDES,
    describe_pair,
    facts_of_run,
    summarise_difference,
)

PARTS = ("estimate", "low", "high", "null", *P_VALUES)
NOT_INFERENCE = (
    "uncorrected, and heads are no independent samples: not valid inference, "
    "only for published numbers"
)


def list_layers(estimates, original):
    """One row a layer: valid inference first, then the original study's columns in its order."""
    columns = {
        f"{index}_{kind}_{run}_{part}": estimate[part]
        for kind in KINDS
        for index in INDICES
        for run, estimate in estimates[kind][index].items()
        for part in PARTS
    }
    columns |= list_original(original)
    return [
        {"layer": layer} | {name: column[layer] for name, column in columns.items()}
        for layer in range(len(columns["rfc_diff"]))
    ]


def list_original(original):
    """{column of the original study: [layer]}, in its order and under its estimator."""
    columns = {}
    for run in SIDES:
        for index in INDICES:
            side = original[index][run]
            columns |= {f"{index}_{part}_{run}": side[part] for part in ("mean", "std")}
            columns |= {f"{index}_ci_{end}_{run}": side[end] for end in ("low", "high")}
        columns[f"n_heads_{run}"] = original["rfc"][run]["n"]
    columns |= {f"{index}_diff": original[index]["diff"]["estimate"] for index in INDICES}
    for index in INDICES:
        diff = original[index]["diff"]
        columns |= {f"{index}_diff_ci_{end}": diff[end] for end in ("low", "high")}
    return columns


def summarise_comparison(runs, estimates, original, notes, reasons):
    """What was compared, what a reader must know first, and each difference over layers.

    runs     {"base": Run, "instruct": Run}
    estimates, original  {} where the runs lack the categories of RFC
    notes    texts that run_pairs.match_runs gives      reasons  why intervals are missing
    """
    differences = {
        kind: {index: summarise_difference(of_kind[index]["diff"]) for index in INDICES}
        for kind, of_kind in estimates.items()
    }
    heads = {index: summarise_difference(entry["diff"]) for index, entry in original.items()}
    for entry in heads.values():
        entry["head_intervals_excluding_zero"] = entry.pop("layers_excluding_zero")
    undefined = ", ".join(
        f"{index.upper()} {kind}"
        for kind in differences
        for index in INDICES
        if differences[kind][index]["layers_undefined"]
    )
    if undefined:
        why = "neutral entropy 0, or no prompts"
        notes = [*notes, f"undefined in some layers ({why}): {undefined}"]
    base, instruct = runs["base"], runs["instruct"]
    return {
        "pair": describe_pair(base, instruct),
        "same_weights": same_weights(base.config["model"], instruct.config["model"]),
        **{name: facts_of_run(run) for name, run in runs.items()},
        "n_layers": base.n_layers,
        "n_heads": base.n_heads,
        "prompts_compared": base.counts,
        "notes": notes + reasons,
        "intervals_left_out": reasons,
        "bootstrap": {
            "unit": name_units(base),
            "resamples": N_RESAMPLES,
            "seed": DEFAULT_SEED,
            "confidence": CONFIDENCE,
        },
        "difference": "instruct - base",
        "differences": differences,
        "original": {"warning": NOT_INFERENCE, **heads} if heads else {},
    }


def summarise_contrasts(compared):
    """{contrast: what summarise_difference says of instruct - base}."""
    return {name: summarise_difference(sides["diff"]) for name, sides in compared.items()}


def list_contrasts(compared):
    """Rows of contrast_comparison.csv, one a contrast and layer."""
    return [
        {"contrast": name, "layer": layer}
        | {
            f"{side}_{part}": estimate[part][layer]
            for side, estimate in sides.items()
            for part in ("estimate", "low", "high", *P_VALUES)
        }
        for name, sides in compared.items()
        for layer in range(len(sides["diff"]["estimate"]))
    ]
