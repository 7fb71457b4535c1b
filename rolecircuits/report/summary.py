"""The summary: five questions answered in words, the table of RFC and RSI, the design audit."""

import math
from collections import Counter

import numpy as np

from rolecircuits.inputs.arguments import ALPHA, MARGIN
from rolecircuits.report import answers, charts, edits, heads
from rolecircuits.report.overview import category_name
from rolecircuits.report.section import INDEX_NAMES, Section, run_facts, run_key, show_interval
from rolecircuits.runs.edit_results import read_effects
from rolecircuits.stats.audit import FACTORS, name_units
from rolecircuits.stats.indices import KIND_NAMES
from rolecircuits.stats.role_tests import VERDICTS
from rolecircuits.stats.verdicts import list_verdicts

AGAINST = {"rfc": "neutral", "rsi": "confounder"}  # what an index compares self-referent with
NAMED = 3  # heads and answers that a sentence names
COLUMNS = (
    *("set", "run", "format", "index", "mean over layers [95 %]", "largest layer"),
    *("pass max-T", "differ", "differ by less", "equivalent", "undecided"),
)
KEYS = (
    *("set", "run", "format", "index", "mean", "largest"),
    *("passed", "differs", "less", "equivalent", "undecided"),
)
IN_WORDS = {  # in a crossed set the bar of the first word says nothing on the category
    True: "In a crossed set every category begins with the same words: the bar of the first word "
    "is what sets the frames apart, and differences between categories are taken inside frames.",
    False: "Where the bar of the first word is longer than that of the category, how prompts begin "
    "explains more than whom they are about.",
}


def summary_section(context):
    """The findings in words and numbers; the table at the kind of the menu."""
    rows = {kind: table_rows(context, kind) for kind in KIND_NAMES}
    shares = [
        run_facts(context.runs[key], key)
        | {"factor": factor, "estimate": numbers.audit["variance"][factor]["median"]}
        for key, numbers in context.numbers.items()
        for factor in FACTORS
    ]
    details = [
        {
            "of": f"{', '.join(key)}, {run.prompt_format} prompts",
            "lines": list_details(context, key),
        }
        for key, run in context.runs.items()
    ]
    said = {run_key(key): IN_WORDS[run.crossed] for key, run in context.runs.items()}
    columns = [{"id": key, "name": name} for key, name in zip(KEYS, COLUMNS, strict=True)]
    return Section(
        "summary",
        "Summary",
        "Which layers react to whom a prompt is about, by how much, whether the first word of the "
        "prompts explains it, and which heads matter.",
        {
            "questions": answer_questions(context),
            "details": details,
            "columns": COLUMNS,
            "rows": rows["normalised"],
            "shares": [_share_cells(row) for row in shares],
        },
        {"rows": rows, "columns": columns, "shares": shares, "said": said}
        | {"spec": charts.share_bars()},
        {"design_audit.csv": shares},
    )


def _share_cells(row):
    share = "-" if math.isnan(row["estimate"]) else f"{row['estimate']:.2f}"
    return row["set"], row["run"], row["factor"], share


def answer_questions(context):
    """[{"question", "lines", "section": where there is more}], crossed first."""
    asked = (
        ("Which layers differ, and by how much?", "layers", describe_layers),
        ("Is it the first word?", None, describe_words),
        ("Which heads read the person?", "heads", describe_readers),
        ("What happens if a head is cut?", "edits", describe_cuts),
        ("What did the model say?", "prompts", describe_answers),
    )
    shown = {"layers", "heads", "prompts"}
    if context.folders.interventions or context.folders.answers:
        shown.add("edits")
    return [
        {"question": q, "lines": say(context), "section": where if where in shown else None}
        for q, where, say in asked
    ]


def describe_layers(context):
    """A line a run of a crossed set, or of every set where none is crossed; then differences."""
    crossed = [key for key, run in context.runs.items() if run.crossed]
    lines = []
    for key in crossed or context.runs:
        numbers = context.numbers[key]
        found = numbers.layers.get("normalised", {})
        said = [describe_index(numbers, index) for index in found]
        said = said or ["RFC needs categories that this set lacks."]
        lines += [f"{', '.join(key)}: {text}" for text in said]
    for name, pair in context.pairs.items():
        indices = pair.indices.get("normalised", {})
        tested = {i: of for i, of in indices.items() if of["diff"]["mean_interval"] is not None}
        said = [describe_difference(index, of) for index, of in tested.items()]
        lines += [f"{name}, instruct - base: {text}" for text in said]
    if not crossed:
        lines.append(
            "There is no crossed set here: who a prompt is about cannot be told from how it begins."
        )
    return lines


def describe_index(numbers, index):
    """One sentence on an index of a run, normalised."""
    found, ends = numbers.layers["normalised"][index], numbers.means["normalised"][index]
    name, n = INDEX_NAMES[index], len(found["p"])
    if np.isnan(found["p"]).all():
        return f"{name} is not tested ({found['reason'] or 'undefined'})."
    layers, mean = passing_layers(found), f"mean over layers {join(show_interval(*ends))}"
    if not len(layers):
        return f"{name} differs from 0 in no layer (max-T); {mean}."
    at = layers[np.argmax(np.abs(found["estimate"][layers]))]
    focus = "more" if found["estimate"][at] > 0 else "less"
    return (
        f"{name} differs from 0 in {len(layers)} of {n} layers ({show_ranges(layers)}; max-T), "
        f"most in layer {at} ({found['estimate'][at]:+.3f}: attention on self-referent prompts is "
        f"{focus} focused than on {AGAINST[index]} ones); {mean}."
    )


def describe_difference(index, found):
    """One sentence on the difference of two runs."""
    value, p = found["diff"]["estimate"], found["diff"]["p_max"]
    layers, name = np.flatnonzero(p < ALPHA), INDEX_NAMES[index]
    mean = show_interval(np.nanmean(value), *found["diff"]["mean_interval"])
    mean = f"mean over layers {join(mean)}"
    if not len(layers):
        return f"{name} differs in no layer (max-T); {mean}."
    at = layers[np.argmax(np.abs(value[layers]))]
    return (
        f"{name} differs in {len(layers)} of {len(value)} layers ({show_ranges(layers)}), most in "
        f"layer {at} ({value[at]:+.3f}); {mean}."
    )


def describe_words(context):
    """A line a set: may the first word of its prompts explain what differs?"""
    lines = []
    for name in context.sets:
        audits = {side: context.numbers[name, side].audit for side in context.sides(name)}
        first = next(iter(audits.values()))
        if first["crossed"]:
            same = ", with the same first word," if first["same_first_word"] else ""
            lines.append(f"{name}: no, every frame holds all categories{same} and as many tokens.")
            continue
        shares = [
            f"{audit['variance']['first word']['median']:.2f} ({side})"
            for side, audit in audits.items()
        ]
        own = [f"{audit['variance']['category']['median']:.2f}" for audit in audits.values()]
        flagged = any(audit["flagged"] for audit in audits.values())
        lines.append(
            f"{name}: {'it may be' if flagged else 'no warning'}: the first word explains "
            f"{' and '.join(shares)} of the variance between prompts, the category "
            f"{' and '.join(own)}."
        )
    return lines


def describe_readers(context):
    """A line a run with slots: the heads whose last token attends the most to the person."""
    lines = []
    for key, run in context.runs.items():
        if not (run.has_slots and run.slot_mass is not None):
            continue
        mass = run.slot_mass.mean(axis=0, dtype=np.float64)
        uniform = float(run.slot_uniform.mean(dtype=np.float64))
        most = np.argsort(-(mass - run.slot_uniform.mean(axis=0)[:, None]), axis=None)[:NAMED]
        places = [divmod(int(place), run.n_heads) for place in most]
        said = ", ".join(f"layer {i} head {j} ({mass[i, j]:.2f})" for i, j in places)
        lines.append(
            f"{', '.join(key)}: the last token attends the most to the words of the person in "
            f"{said}; uniform attention would give {uniform:.2f}."
        )
    return lines or ["Not known: the prompts of these runs mark no words of the person."]


def describe_cuts(context):
    """Lines on a sweep and on the edited heads, where there are such results."""
    lines = []
    for key, run in context.runs.items():
        swept = heads.sweep_kl(context, run)
        if swept is None:
            continue
        kl, (name, _) = swept["kl"], key
        places = [divmod(int(p), kl.shape[1]) for p in np.argsort(-kl, axis=None)[:NAMED]]
        said = ", ".join(f"layer {i} head {j} ({kl[i, j]:.2f} nats)" for i, j in places)
        lines.append(
            f"{name}, {run.prompt_format} prompts: of {kl.size} heads, cut one at a time, the next "
            f"token changes the most without {said}; median {np.median(kl):.3f} nats (KL)."
        )
        break  # the same numbers stand beside every run of these weights and this format
    if context.folders.interventions is not None:
        for row in edits.candidate_rows(read_effects(context.folders.interventions)):
            kl = row["cells"][0]
            lines.append(
                f"{row['name']}: KL {join(kl['effect'])} nats, rank {kl['rank']} in its layer."
            )
    return lines or ["Not measured here: give --interventions or --sweep to report.py."]


def describe_answers(context):
    """Lines on the answers: of which runs, the first of each category, what edits changed."""
    if not context.folders.answers:
        return ["Not in this page: give --answers, a run of experiment.py, to report.py."]
    lines = []
    for results, config in map(answers.read_answers, context.folders.answers):
        lines += describe_generation(context, results, config)
    return lines or ["The answers given are of no run of this page."]


def describe_generation(context, results, config):
    """`describe_answers` of one run of experiment.py; quoted is the first frame that it answers."""
    lines = []
    for key, texts in answers.answers_of_runs(context.runs, results, config).items():
        run = context.runs[key]
        answered = np.isin(run.prompt_id, list(texts))
        frame = answered & (run.frame == run.frame[answered][0])
        first = [
            int(np.flatnonzero(frame & (run.category == name))[0])
            for name in dict.fromkeys(run.category[frame].tolist())
        ]
        said = [
            f"{category_name(str(run.category[i]))}: {quote(run.prompts[i]['text'])} {ARROW} "
            f"{quote(texts[str(run.prompt_id[i])])}"
            for i in first
        ]
        lines.append(f"{', '.join(key)}: {len(texts)} answers stand beside their prompts.")
        lines += said
    for edit in answers.changed_answers(results):
        lines.append(f"{edit['edit']}: {edit['n_changed']} of {edit['n']} answers changed.")
    return lines


ARROW = "\u2192"


def join(text):
    """`text` with spaces at which no line ends."""
    return text.replace(" ", "\u00a0")


def quote(text, most=90):
    """A text on one line in quotation marks, cut where it is long."""
    text = " ".join(text.split())
    return f"\u201c{text if len(text) <= most else text[:most] + '...'}\u201d"


def table_rows(context, kind):
    """Rows of the table, one a run and index of which there is a value at this kind."""
    rows = []
    for key, numbers in context.numbers.items():
        fields = [*key, context.runs[key].prompt_format]
        for index, found in numbers.layers.get(kind, {}).items():
            ends = numbers.means[kind][index]
            rows.append([*fields, INDEX_NAMES[index], *_cells(found, ends)])
    return rows


def _cells(found, ends):
    """Cells of an index; ends (mean over layers, low, high)."""
    distance = found["estimate"] - found["null"]
    if np.isnan(distance).all():
        return ["undefined", *"-" * 6]
    at, counts = int(np.nanargmax(np.abs(distance))), Counter(found["verdict"].tolist())
    tested = bool(np.isfinite(found["p"]).any())
    n = f"{len(passing_layers(found))} of {len(distance)}" if tested else "not tested"
    verdicts = [counts.get(verdict, 0) if tested else "-" for verdict in VERDICTS]
    return [show_interval(*ends), f"{distance[at]:+.3f} @{at}", n, *verdicts]


def passing_layers(found):
    """Layers that pass max-T: of the primary family where it is one, else of their own index."""
    p = found["p_primary"] if np.isfinite(found["p_primary"]).any() else found["p_max"]
    return np.flatnonzero(p < ALPHA)


def list_details(context, key):
    """Sentences on one run: its families of tests, its design, the unit of its intervals."""
    run, numbers = context.runs[key], context.numbers[key]
    lines = list_verdicts(numbers.primary, {}, numbers.reasons, MARGIN)[:-1]
    lines = [line.strip() for line in lines]
    lines.append(f"design: {numbers.audit['verdict']}")
    lines.append(f"intervals and tests are over {name_units(run)}")
    return lines


def show_ranges(layers):
    """Layers as ranges: 3, 5-9, 21."""
    parts = np.split(layers, np.flatnonzero(np.diff(layers) > 1) + 1)
    return ", ".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)
