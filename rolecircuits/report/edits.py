"""Interventions in a report: each edited head among all heads of its layer, and what it changed.

    rank  of the size of an effect among the heads of the layer under the same edit, 1 the largest
    test  are the edited heads a random choice of their layers' heads? exact (see METHODS.md)

KL and surprisal are in nats; a change is edited - unedited.
"""

from rolecircuits.inputs.arguments import ALPHA
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.specs import same_weights
from rolecircuits.report import answers
from rolecircuits.report.section import Context, Section, run_facts
from rolecircuits.runs import arrays
from rolecircuits.runs.edit_results import EFFECT_PARTS, read_effects
from rolecircuits.runs.files import read_json
from rolecircuits.runs.record import prompt_set_of

SEE = (
    "Whether cutting a head that reacts to the person changes more than cutting another head of "
    "its layer does: the coloured point is the edited head with its 95 % interval, the grey marks "
    "are the other heads, all of them."
)
METRICS = {
    "kl": "KL of the next token, nats",
    "rfc_change": "RFC of later layers",
    "rsi_change": "RSI of later layers",
    "surprisal_change": "surprisal of the unedited answer, nats",
}
UNSIGNED = ("kl",)
NAMES = ("estimate", "low", "high", "control", "p", "q", "rank")  # of EFFECT_PARTS in a CSV
LABELS = ("intervention", "role", "type", "layer", "head", "method", "category", "n", "pool")
SET_NUMBERS = ("n_candidates", "mean_rank", "expected_rank", "p", "smallest_p", "q", "n_layers")


def edits_section(context: Context):
    """The Section, or None without a folder of interventions or of answers."""
    folder, generated = context.folders.interventions, context.folders.answers
    if folder is None and not generated:
        return None
    static, data, tables = {"rows": [], "tests": [], "answers": [], "of": ""}, {}, {}
    if folder is not None:
        rows, tests = read_effects(folder), read_set_tests(folder)
        config = read_json(folder / "experiment_config.json")
        facts = facts_of(config, context.runs)
        static |= {"rows": candidate_rows(rows), "tests": [describe_test(test) for test in tests]}
        static["of"] = f"{printable(config['model']['id'])}, {config['prompts']['format']} prompts"
        data = {"rows": plain_rows(rows), "facts": facts, "metrics": METRICS}
        data |= {"labels": LABELS[1:], "parts": EFFECT_PARTS, "part_names": NAMES}
        tables["set_tests.csv"] = [facts | test_row(test) for test in tests]
    changed = []
    for results, config in map(answers.read_answers, generated):
        static["answers"] += answers.changed_answers(results)
        changed += answers.answer_rows(results, facts_of(config, context.runs))
    tables["answer_changes.csv"] = changed
    tables = {name: rows for name, rows in tables.items() if rows}
    return Section("edits", "Interventions", SEE, static, data, tables)


def facts_of(config, runs):
    """The columns that every CSV begins with, of a run with this config.

    Where the report has a run of the same weights and format its set and side are taken.
    """
    for key, run in runs.items():
        fed = run.prompt_format == config["prompts"]["format"]
        if fed and same_weights(run.config["model"], config["model"]):
            return run_facts(run, key) | {"set": prompt_set_of(config)}
    return arrays.facts_of(config, "")


def read_set_tests(folder):
    """The tests of the sets of effects.json, checked: one dict a type of edit and metric."""
    path = folder / "effects.json"
    tests = read_json(path).get("set_tests") or []
    for i, test in enumerate(tests):
        whole = isinstance(test, dict) and isinstance(test.get("metric"), str)
        numbers = [test.get(name) for name in SET_NUMBERS] if whole else [None]
        if not all(type(number) in (int, float) for number in numbers):
            raise UserError(f"{path}: set_tests[{i}] is damaged; run interventions.py again")
    known = [test for test in tests if test["metric"] in METRICS]
    return sorted(known, key=lambda test: list(METRICS).index(test["metric"]))


def pool_of(row, rows):
    """The rows of the other heads that a candidate is ranked among, of the same category.

    They are its controls and those that share one with it: candidates of the same layer and edit.
    """
    named = set(str(row["controls"]).split())
    return [
        other
        for other in rows
        if other is not row
        and other["category"] == row["category"]
        and (other["intervention"] in named or named & set(str(other["controls"]).split()))
    ]


def plain_rows(rows):
    """[{labels, metric and its parts, "pool_rows"}] of all rows, for the page.

    pool_rows  of a candidate: the places of the heads it is ranked among
    """
    place = {id(row): i for i, row in enumerate(rows)}
    plain = []
    for row in rows:
        own = {name: row.get(name) for name in LABELS}
        own["name"] = edit_name(row)
        if row["role"] == "candidate":
            own["pool_rows"] = [place[id(other)] for other in pool_of(row, rows)]
            own |= {m + part: row.get(m + part) for m in METRICS for part in EFFECT_PARTS}
        else:
            own |= {m: row.get(m) for m in METRICS}
        plain.append(own)
    return plain


def edit_name(row):
    """An edit in words: "layer 0 head 8, zero_out"; the name of the plan where it is no head."""
    if row.get("type") == "head" and row.get("layer") is not None:
        return printable(f"layer {row['layer']} head {row['head']}, {row.get('method')}")
    return printable(row["intervention"])


def candidate_rows(rows):
    """The candidates over all prompts as texts: {"name", "n", "cells": [{"effect", "rank"}]}."""
    chosen = [row for row in rows if row["role"] == "candidate" and row["category"] == "all"]
    return [
        {"name": edit_name(row), "n": row["n"], "cells": [effect_cell(row, m) for m in METRICS]}
        for row in chosen
    ]


def effect_cell(row, metric):
    """{"effect": "+0.006 [+0.001, +0.011]", "rank": "1 of 9"}; "-" where undefined."""
    sign = "" if metric in UNSIGNED else "+"
    value, low, high, rank = (row[metric + part] for part in ("", "_low", "_high", "_rank"))
    text = "-" if value is None else f"{value:{sign}.3f}"
    if value is not None and low is not None:
        text += f" [{low:{sign}.3f}, {high:{sign}.3f}]"
    return {"effect": text, "rank": "-" if rank is None else f"{rank:g} of {row['pool']:g}"}


def describe_test(test):
    """{"metric", "said"}: are the candidates of one edit a random choice of their layers' heads?"""
    layers = f"{test['n_layers']:g} layer{'s' * (test['n_layers'] > 1)}"
    heads = f"{test['n_candidates']:g} edits in {layers}"
    ranks = f"mean rank {test['mean_rank']:.3g}, by chance {test['expected_rank']:.3g}"
    if test["smallest_p"] > ALPHA:
        verdict = f"too few for a test (the smallest p is {test['smallest_p']:.2g})"
    else:
        more = "more" if test["mean_rank"] < test["expected_rank"] else "less"
        differs = test["q"] < ALPHA
        said = f"they do {more} than other heads" if differs else "could be a random choice"
        verdict = f"exact p {test['p']:.2g}, q {test['q']:.2g}: {said}"
    edit = " ".join(printable(test.get(name, "")) for name in ("type", "change"))
    return {"metric": METRICS[test["metric"]], "said": f"{edit}, {heads}: {ranks}; {verdict}"}


def test_row(test):
    """The row of set_tests.csv."""
    labels = {name: test.get(name, "") for name in ("type", "change", "metric")}
    return labels | {name: test[name] for name in SET_NUMBERS}
