"""The head of the page, the summary and the method."""

import math
from collections import Counter

import numpy as np

from rolecircuits.inputs.arguments import ALPHA, MARGIN
from rolecircuits.inputs.errors import printable
from rolecircuits.report import charts
from rolecircuits.report.numbers import estimate_of
from rolecircuits.report.section import INDEX_NAMES, Section, show_interval
from rolecircuits.runs.record import portable
from rolecircuits.stats.audit import FACTORS, name_units
from rolecircuits.stats.contrasts import names_of
from rolecircuits.stats.role_tests import VERDICTS
from rolecircuits.stats.verdicts import list_verdicts

CATEGORY_NAMES = {"self_referent": "self-referent", "third_person": "third person"}
AGAINST = {"rfc": "neutral", "rsi": "confounder"}  # what an index compares self-referent with
COLUMNS = (
    (
        "model, set, format, run",
        "which run: the model, its prompt set, raw or chat, base or instruct",
    ),
    ("kind", "normalised, sinkfree or raw: which entropy, see above"),
    ("index", "rfc or rsi"),
    ("contrast", "a-b: focus(a) - focus(b); positive: a is the more focused"),
    ("quantity", "an index or a contrast"),
    ("layer, head", "counted from 0"),
    ("estimate", "the number itself"),
    ("low, high", "its 95 % bootstrap-t interval over the unit of the set"),
    ("null", "the same index if attention were uniform over the visible keys"),
    ("p", "of estimate = null, this layer or head alone"),
    ("q", "p corrected by Benjamini-Hochberg over all layers or heads of one kind and quantity"),
    ("p_max", "p corrected by max-T over the same family"),
    (
        "p_primary",
        "max-T over the layers of both indices: the primary family (crossed, normalised)",
    ),
    ("verdict", f"differs (q < {ALPHA}), equivalent (within {MARGIN:g} of its null), or undecided"),
    ("g", "Hedges g of a contrast, with its sign"),
    ("base_, instruct_, diff_", "of the base run, the instruct run, and instruct - base"),
    ("slot_mass_minus_uniform", "attention of the last query on the slot, minus the uniform share"),
    ("kl", "KL of the next token when the head is ablated, in nats (sweep)"),
    ("value, category, row", "entropy of one prompt, or of one frame of a crossed set"),
)
FORMULAS = (
    ("Row entropy", "H = -sum over keys of A ln A, in nats; 0 ln 0 = 0"),
    ("RFC", "1 - H(self-referent) / H(neutral); above 0: self-referent is the more focused"),
    (
        "RSI",
        "(H(confounder) - H(self-referent)) / H(neutral); above 0: more focused than on prompts "
        "about the user",
    ),
    ("Focus", "entropy with its sign turned: focus(a) - focus(b) = H(b) - H(a)"),
    ("Difference of runs", "instruct - base, on the prompts that both runs hold"),
)
KINDS = (
    ("normalised", "every row divided by ln(visible keys): 0 one key, 1 uniform, at any length"),
    (
        "sink-free",
        "normalised after the attention sink (key 0, or a learned sink) is dropped and the "
        "row renormalised",
    ),
    ("raw", "in nats; grows with length, so index values are shown minus their length null"),
)


def category_name(name):
    """A category in words."""
    return CATEGORY_NAMES.get(name, name.replace("_", " "))


def contrast_name(contrast):
    """A contrast in words: self-referent - neutral."""
    sides = [" + ".join(map(category_name, names_of(side))) for side in contrast]
    return " - ".join(f"({text})" if "+" in text else text for text in sides)


def page_title(context):
    """The models of the runs."""
    ids = dict.fromkeys(run.config["model"]["id"] for run in context.runs.values())
    return f"Role-conditioning circuits: {' and '.join(map(shorten, ids))}"


def shorten(text, most=120):
    """`text` on one line without control characters, its middle left out where it is long."""
    text = printable(text)
    return text if len(text) <= most else f"{text[: most - 24]} ... {text[-16:]}"


def page_head(context):
    """What was read, run by run."""
    columns = ("set", "run", "model", "format", "prompts", "frames", "weights (SHA-256)", "made")
    rows = []
    for (name, side), run in context.runs.items():
        model, made = run.config["model"], run.config.get("created")
        weights = (model.get("weights_sha256") or "-")[:16]
        n, frames = len(run.category), len(set(run.frame.tolist()))
        rows.append(
            (name, side, shorten(model["id"]), run.prompt_format, n, frames, weights, made or "-")
        )
    checked = "compared with the SHA-256 of their manifests before they were read"
    files = f"Files of the runs: {checked if context.verified else 'not ' + checked}."
    return {"columns": columns, "rows": rows, "files": files, "notes": context.notes}


def summary_section(context):
    """The findings in words and numbers; normalised unless the menu says another kind."""
    found, rows, means = [], [], {}
    for key, numbers in context.numbers.items():
        name, side = key
        fields = {"set": name, "run": side, "format": context.runs[key].prompt_format}
        for index, of_index in numbers.layers.get("normalised", {}).items():
            rows.append([*fields.values(), INDEX_NAMES[index], *_cells(numbers, index, of_index)])
        means["|".join(key)] = _means(numbers)
        found.append(fields | {"lines": _findings(context, key)})
    shares = [
        {
            "set": name,
            "run": side,
            "factor": factor,
            "share": numbers.audit["variance"][factor]["median"],
        }
        for (name, side), numbers in context.numbers.items()
        for factor in FACTORS
    ]
    shown = [
        (
            row["set"],
            row["run"],
            row["factor"],
            "-" if math.isnan(row["share"]) else f"{row['share']:.2f}",
        )
        for row in shares
    ]
    return Section(
        "summary",
        "Summary",
        "Which layers react to whom a prompt is about, by how much, and whether the first word of "
        "the prompts explains it.",
        {
            "headline": headline(context),
            "found": found,
            "columns": SUMMARY_COLUMNS,
            "rows": rows,
            "shares": shown,
        },
        {"means": means, "shares": shares, "spec": charts.share_bars(), "indices": INDEX_NAMES},
        {"design_audit.csv": shares},
    )


def headline(context):
    """What to take away: which layers differ, by how much, whether it is the first word."""
    lines = []
    for name in context.sets:
        for side in (
            context.sides(name) if context.runs[name, context.sides(name)[0]].crossed else ()
        ):
            found = context.numbers[name, side].layers.get("normalised", {})
            lines += [
                f"{name}, {side}: {describe_index(context.numbers[name, side], index)}"
                for index in found
            ]
        pair = context.pairs.get(name)
        for index, of_index in (pair.indices.get("normalised", {}) if pair else {}).items():
            if of_index["diff"]["mean_interval"] is not None:
                lines.append(f"{name}, instruct - base: {describe_difference(index, of_index)}")
    if not any(run.crossed for run in context.runs.values()):
        lines.append(
            "There is no crossed set here: who a prompt is about cannot be told from how it begins."
        )
    return lines + [describe_words(context, name) for name in context.sets]


def describe_index(numbers, index):
    """One sentence on an index of a run, normalised."""
    found, ends = numbers.layers["normalised"][index], numbers.means["normalised"][index]
    if np.isnan(found["p"]).all():
        return f"{INDEX_NAMES[index]} is not tested ({found['reason'] or 'undefined'})."
    at, n = int(np.nanargmax(np.abs(found["estimate"]))), len(passing_layers(found))
    sense = "attention on self-referent prompts has no clear direction on average"
    if ends[1] > 0 or ends[2] < 0:
        focus = "more" if ends[1] > 0 else "less"
        sense = (
            f"attention on self-referent prompts is {focus} focused than on {AGAINST[index]} ones"
        )
    return (
        f"{INDEX_NAMES[index]} differs from 0 in {n} of {len(found['p'])} layers (max-T), most in "
        f"layer {at} ({found['estimate'][at]:+.3f}); mean over layers {show_interval(*ends)}: "
        f"{sense}."
    )


def describe_difference(index, found):
    """One sentence on the difference of two runs."""
    value, p = estimate_of(found["diff"]), found["diff"]["p_max"]
    at, n = int(np.nanargmax(np.abs(value))), int((p < ALPHA).sum())
    mean = show_interval(np.nanmean(value), *found["diff"]["mean_interval"])
    return (
        f"{INDEX_NAMES[index]} differs in {n} of {len(value)} layers (max-T), most in layer {at} "
        f"({value[at]:+.3f}); mean over layers {mean}."
    )


def describe_words(context, name):
    """Whether the first word of the prompts of a set may explain what differs."""
    sides = context.sides(name)
    audits = [context.numbers[name, side].audit for side in sides]
    if audits[0]["crossed"]:
        same = ", with the same first word," if audits[0]["same_first_word"] else ""
        every = f"every frame holds all categories{same} and as many tokens"
        return f"{name}: it is not the first word: {every}."
    shares = [
        f"{audit['variance']['first word']['median']:.2f} ({side})"
        for side, audit in zip(sides, audits, strict=True)
    ]
    own = [f"{audit['variance']['category']['median']:.2f}" for audit in audits]
    why = (
        "so it may be the first word" if any(audit["flagged"] for audit in audits) else "no warning"
    )
    return (
        f"{name}: the first word explains {' and '.join(shares)} of the variance between prompts, "
        f"the category {' and '.join(own)}: {why}."
    )


SUMMARY_COLUMNS = (
    *("set", "run", "format", "index", "mean over layers [95 %]", "largest layer"),
    *("pass max-T", "differ", "differ by less", "equivalent", "undecided"),
)


def _cells(numbers, index, found):
    """Cells of the summary's table, of one index."""
    distance = found["estimate"] - found["null"]
    if np.isnan(distance).all():
        return ["undefined", *"-" * 6]
    at = int(np.nanargmax(np.abs(distance)))
    passing = passing_layers(found)
    counts = Counter(found["verdict"].tolist())
    tested = np.isfinite(found["p"]).any()
    cells = [show_interval(*numbers.means["normalised"][index])]
    cells += [f"{found['estimate'][at]:+.3f} @{at}"]
    cells += [f"{len(passing)} of {len(distance)}" if tested else "not tested"]
    return cells + [counts.get(verdict, 0) if tested else "-" for verdict in VERDICTS]


def passing_layers(found):
    """Layers that pass max-T: of the primary family where it is one, else of their own index."""
    p = found["p_primary"] if np.isfinite(found["p_primary"]).any() else found["p_max"]
    return np.flatnonzero(p < ALPHA)


def _means(numbers):
    """{kind: {index: [mean, low, high, layers that pass, layers, whether tested]}}."""
    out = {}
    for kind, of_kind in numbers.layers.items():
        out[kind] = {}
        for index, found in of_kind.items():
            tested = bool(np.isfinite(found["p"]).any())
            counts = [len(passing_layers(found)), len(found["p"]), tested]
            out[kind][index] = [*numbers.means[kind][index], *counts]
    return out


def _findings(context, key):
    """Sentences on one run: what its layers show, what the first word explains, what to mind."""
    run, numbers = context.runs[key], context.numbers[key]
    lines = list_verdicts(numbers.primary, {}, numbers.reasons, MARGIN)[:-1]
    lines = [line.strip() for line in lines]
    for index, found in numbers.layers.get("normalised", {}).items():
        layers = passing_layers(found)
        if len(layers):
            lines.append(f"{INDEX_NAMES[index]}, layers that pass max-T: {show_ranges(layers)}")
    lines.append(f"design: {numbers.audit['verdict']}")
    lines.append(f"intervals and tests are over {name_units(run)}")
    return lines


def show_ranges(layers):
    """Layers as ranges: 3, 5-9, 21."""
    parts = np.split(layers, np.flatnonzero(np.diff(layers) > 1) + 1)
    return ", ".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)


def method_section(context):
    """Formulas, sign, kinds, columns, the config of every run and how to repeat it all."""
    configs = [
        (f"{name}, {side}", flatten(run.config)) for (name, side), run in context.runs.items()
    ]
    versions = [
        (
            name,
            side,
            run.config.get("schema_version", "-"),
            _commit(run.config),
            portable(run.path or "-"),
        )
        for (name, side), run in context.runs.items()
    ]
    return Section(
        "method",
        "Method",
        "What each number is, which sign it has, and how to make it again.",
        {
            "formulas": FORMULAS,
            "kinds": KINDS,
            "columns": COLUMNS,
            "configs": configs,
            "versions": versions,
            "command": context.command,
        },
        tables={
            "configs.csv": [
                {"run": label, "field": field, "value": value}
                for label, fields in configs
                for field, value in fields
            ]
        },
    )


def _commit(config):
    git = config.get("git") or {}
    return f"{str(git.get('commit', '-'))[:12]}{', with changes' if git.get('dirty') else ''}"


def flatten(value, name=""):
    """A config as rows (dotted name, text); long lists are cut."""
    if isinstance(value, dict) and value:
        return [
            row for key, v in value.items() for row in flatten(v, f"{name}.{key}" if name else key)
        ]
    text = "" if value is None else str(value)
    return [(name, text if len(text) <= 300 else f"{text[:300]}... ({len(text)} characters)")]
