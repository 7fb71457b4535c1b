"""The sections along layers: RFC, RSI and the contrasts of every run, and two runs compared."""

import numpy as np

from rolecircuits.report import charts
from rolecircuits.report.section import (
    INDEX_NAMES,
    SIDES,
    Section,
    run_facts,
    run_key,
    show_interval,
)
from rolecircuits.report.static_svg import line_chart
from rolecircuits.stats.indices import INDICES, KIND_NAMES

P_NAMES = ("p", "q", "p_max")
TESTED = ("estimate", "low", "high", *P_NAMES)


def layers_section(context):
    """RFC and RSI minus their length null by layer, and the contrast, of both runs of a set."""
    runs = {run_key(key): layer_data(numbers) for key, numbers in context.numbers.items()}
    charts_of = {}
    for name in context.sets:
        charts_of[name] = [
            chart for index in INDICES if (chart := _static_chart(context, name, index)) is not None
        ]
    return Section(
        "layers",
        "Layers",
        "Look for layers whose band leaves 0: above it attention on self-referent prompts is the "
        "more focused, below it the less. Drag over layers to narrow everything that follows.",
        {"charts": charts_of},
        {"runs": runs, "spec": charts.layer_lines(), "indices": INDEX_NAMES},
        {"layers.csv": layer_rows(context), "layer_contrasts.csv": contrast_rows(context)},
        packed=True,
    )


def layer_data(numbers):
    """{kind: {index or contrast: columns [layer]}} of a run; index values are minus their null."""
    data = {}
    for kind in KIND_NAMES:
        data[kind] = {"indices": {}, "contrasts": {}}
        for index, found in numbers.layers.get(kind, {}).items():
            null = found["null"]
            columns = {name: found[name] - null for name in ("estimate", "low", "high")}
            columns |= {name: found[name] for name in ("null", "p", "q", "p_max", "p_primary")}
            data[kind]["indices"][index] = columns | {"verdict": found["verdict"]}
        for name, found in numbers.contrast_layers[kind].items():
            data[kind]["contrasts"][name] = measured(found)
    return data


def measured(found):
    """The columns of a test that a page shows."""
    return {name: found[name] for name in TESTED}


def layer_rows(context):
    """Rows of layers.csv: one a run, kind, index and layer, as the functions gave them."""
    rows = []
    names = ("estimate", "low", "high", "null", "p", "q", "p_max", "p_primary", "verdict")
    for key, numbers in context.numbers.items():
        facts = run_facts(context.runs[key], key)
        for kind, of_kind in numbers.layers.items():
            for index, found in of_kind.items():
                rows += [
                    facts
                    | {"kind": kind, "index": index, "layer": layer}
                    | {name: found[name][layer] for name in names}
                    for layer in range(len(found["estimate"]))
                ]
    return rows


def contrast_rows(context):
    """Rows of layer_contrasts.csv: one a run, kind, contrast and layer; focus(a) - focus(b)."""
    rows = []
    for key, numbers in context.numbers.items():
        facts = run_facts(context.runs[key], key)
        for kind, of_kind in numbers.contrast_layers.items():
            for name, found in of_kind.items():
                columns = measured(found) | {"g": found["g"]}
                rows += [
                    facts
                    | {"kind": kind, "contrast": name, "layer": layer}
                    | {column: values[layer] for column, values in columns.items()}
                    for layer in range(len(found["p"]))
                ]
    return rows


def _static_chart(context, name, index):
    """The chart of an index, normalised, of both runs of a set; None where it is undefined."""
    series = []
    for side in context.sides(name):
        found = context.numbers[name, side].layers.get("normalised", {}).get(index)
        if found is not None:
            columns = (found[column] - found["null"] for column in ("estimate", "low", "high"))
            series.append((side, charts.RUN_LOOKS[side][0], *columns))
    label = f"{INDEX_NAMES[index]} by layer, normalised, prompt set {name}"
    return line_chart(series, INDEX_NAMES[index], label) if series else None


def comparison_section(context):
    """Base and instruct on one axis and their difference; None where no set has both runs."""
    if not context.pairs:
        return None
    first = next(iter(context.pairs))
    sets, notes = {}, {}
    for name, pair in context.pairs.items():
        sets[name] = {kind: pair_data(pair, kind) for kind in KIND_NAMES}
        reasons = [reason for reason in pair.reasons.values() if reason]
        size = f"{pair.n} prompts in {pair.frames} frames are in both runs ({pair.pair})"
        notes[name] = [size, *pair.notes, *reasons]
    found = context.pairs[first].indices.get("normalised", {})
    columns = ["layer"]
    columns += [f"{INDEX_NAMES[i]} {what}" for i in found for what in (*SIDES, "difference")]
    rows = [
        [layer, *(_cell(found[i][what], layer) for i in found for what in (*SIDES, "diff"))]
        for layer in range(len(next(iter(found.values()))["base"]["null"]) if found else 0)
    ]
    return Section(
        "comparison",
        "Comparison",
        "Where the lower band leaves 0, the instruct run differs from the base run; above 0 its "
        "attention on self-referent prompts gained focus.",
        {"notes": notes, "columns": columns, "rows": rows, "set": first},
        {
            "sets": sets,
            "notes": notes,
            "spec": charts.layer_lines(),
            "difference": charts.difference_line(),
            "indices": INDEX_NAMES,
        },
        {"comparison.csv": pair_rows(context)},
        packed=True,
    )


def pair_data(pair, kind):
    """{"indices", "contrasts": {name: {base, instruct, diff: columns [layer]}}}, minus nulls."""
    data = {"indices": {}, "contrasts": {}}
    for index, found in pair.indices.get(kind, {}).items():
        data["indices"][index] = {}
        for what in (*SIDES, "diff"):
            columns = measured(found[what])
            null = found[what]["null"]
            columns |= {name: columns[name] - null for name in ("estimate", "low", "high")}
            data["indices"][index][what] = columns | {"null": null}
    for name, found in pair.contrasts[kind].items():
        data["contrasts"][name] = {what: measured(found[what]) for what in (*SIDES, "diff")}
    return data


def pair_rows(context):
    """Rows of comparison.csv: one a set, kind, quantity and layer; differences instruct - base."""
    rows = []
    for name, pair in context.pairs.items():
        runs = {side: context.runs[name, side] for side in SIDES}
        facts = {f"model_{side}": run.config["model"]["id"] for side, run in runs.items()}
        facts |= {"set": name}
        facts |= {f"format_{side}": run.prompt_format for side, run in runs.items()}
        for kind in KIND_NAMES:
            quantities = pair.indices.get(kind, {}) | pair.contrasts[kind]
            for quantity, found in quantities.items():
                columns = {}
                for what in (*SIDES, "diff"):
                    of_side = measured(found[what])
                    if "null" in found[what]:
                        of_side |= {"null": found[what]["null"]}
                    columns |= {f"{what}_{column}": v for column, v in of_side.items()}
                n = len(found["base"]["p"])
                place = {"kind": kind, "quantity": quantity}
                rows += [
                    facts | place | {"layer": i} | {c: v[i] for c, v in columns.items()}
                    for i in range(n)
                ]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return [{column: row.get(column, np.nan) for column in columns} for row in rows]


def _cell(measures, layer):
    """A number beside its interval, of an estimate of a pair."""
    ends = (measures["low"][layer], measures["high"][layer])
    return show_interval(measures["estimate"][layer], *ends)
