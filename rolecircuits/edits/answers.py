"""Greedy answers of the unedited model and under each entry of a plan, side by side."""

import contextlib
import difflib

from rolecircuits.capture.generation import (
    check_room,
    first_difference,
    generate_greedily,
    measure_answer,
    stop_tokens,
)
from rolecircuits.capture.masks import note_windows
from rolecircuits.capture.tokens import tokenize_prompts
from rolecircuits.drawing.tables import print_table, right, say
from rolecircuits.edits.bench import donors_for, notes_on
from rolecircuits.edits.check import check_edits, edited_sites
from rolecircuits.edits.hooks import prepare_edit
from rolecircuits.inputs.categories import order_categories
from rolecircuits.inputs.specs import Setting
from rolecircuits.models.load import LoadedModel
from rolecircuits.runs.arrays import facts_of
from rolecircuits.runs.files import write_csv, write_json

MEASURES = {
    "first_person": "first person",
    "self_naming": "names itself",
    "n_tokens": "tokens",
    "repetition": "repetition",
}


def answer_prompts(loaded: LoadedModel, prompts, plan, setting: Setting, max_tokens, monitor=None):
    """generation_results.json: answers, measures, and what each entry of the plan changed.

    monitor  a RoleMonitor that watches the unedited answers, or None
    """
    tokenized = tokenize_prompts(prompts, loaded.tokenizer, setting.form)
    if plan:
        check_edits(loaded, edited_sites(plan))
        longest = max(len(prompt.token_ids) for prompt in tokenized)
        note_windows(loaded, longest + max_tokens)
    check_room(tokenized, max_tokens, loaded.facts)
    notes_on(plan, tokenized, setting.seed)
    donors, size = donors_for(loaded, tokenized, plan, setting), setting.batch_size

    def answer(name, prepare=None):
        ids = generate_greedily(loaded, tokenized, max_tokens, size, prepare, name)
        return describe_answers(loaded, tokenized, ids)

    with monitor or contextlib.nullcontext():
        baseline = answer("baseline")
    edited = {entry.name: answer(entry.name, prepare_edit(entry, donors)) for entry in plan}
    everything = {"baseline": baseline} | edited
    return {
        "schema_version": 1,
        "max_tokens": max_tokens,
        "baseline": baseline,
        "summary": {name: summarize_answers(rows) for name, rows in everything.items()},
        "interventions": edited,
        "changes": [
            row for name, rows in edited.items() for row in compare_answers(name, baseline, rows)
        ],
    }


def describe_answers(loaded: LoadedModel, tokenized, answers):
    """One row a prompt: category, prompt, token ids, text and measures."""
    stop, rows = stop_tokens(loaded), []
    for prompt, ids in zip(tokenized, answers, strict=True):
        text = loaded.tokenizer.hf.decode(ids, skip_special_tokens=True)
        row = {"id": prompt.id, "category": prompt.category, "prompt": prompt.text}
        measures = measure_answer(ids, text, bool(ids) and ids[-1] in stop)
        rows.append(row | {"token_ids": ids, "text": text, "measures": measures})
    return rows


def summarize_answers(rows):
    """Means of the measures: {category: {"n": prompts, measure: mean}}."""
    summary = {}
    for name in order_categories(row["category"] for row in rows):
        chosen = [row["measures"] for row in rows if row["category"] == name]
        means = {m: sum(row[m] for row in chosen) / len(chosen) for m in MEASURES}
        summary[name] = {"n": len(chosen)} | means
    return summary


def compare_answers(name, baseline, edited):
    """One row a prompt of one intervention: both texts, the first token in which they differ."""
    rows = []
    for before, after in zip(baseline, edited, strict=True):
        place = first_difference(before["token_ids"], after["token_ids"])
        labels = {"intervention": name} | {key: before[key] for key in ("id", "category", "prompt")}
        texts = {"baseline": before["text"], "edited": after["text"]}
        rows.append(labels | {"changed": place is not None, "first_difference": place} | texts)
    return rows


def save_answers(folder, results, config):
    """generation_results.json, answer_changes.csv and experiment_config.json of a run."""
    write_json(folder / "generation_results.json", results)
    rows = [dict(row) for row in results["changes"]]
    for row in rows:
        if not row["changed"]:
            row["first_difference"] = ""
    if rows:
        write_csv(folder / "answer_changes.csv", rows, facts=facts_of(config, "generation"))
    write_json(folder / "experiment_config.json", config)


def print_answers(results):
    """Measures by category, how many answers each intervention changed, and a few answers."""
    summary, cells = results["summary"]["baseline"], []
    for name, means in summary.items():
        values = (f"{means[m]:.{1 if m == 'n_tokens' else 3}f}" for m in MEASURES)
        cells.append([name, means["n"], *values])
    columns = ["category", *map(right, ("n", *MEASURES.values()))]
    title = "unedited answers, means by category"
    print_table(columns, cells, title, "first person, repetition: share of words, of trigrams")
    if results["changes"]:
        cells = []
        for intervention in results["interventions"]:
            rows = [row for row in results["changes"] if row["intervention"] == intervention]
            of = {name: [r["changed"] for r in rows if r["category"] == name] for name in summary}
            cells.append([intervention, *(f"{sum(own)} of {len(own)}" for own in of.values())])
        print_table(["intervention", *summary], cells, "answers changed")
    print_examples(results)


def print_examples(results):
    """One prompt a category with its unedited answer, and an edited one where one has changed."""
    print()
    for category in results["summary"]["baseline"]:
        rows = [row for row in results["changes"] if row["category"] == category]
        row = next((row for row in rows if row["changed"]), None)
        if row is None:
            row = next(row for row in results["baseline"] if row["category"] == category)
            say(f"{category}: {' '.join(row['prompt'].split())}")
            say(f"    answer    {shorten(row['text'].split())}")
            if rows:
                say("    no intervention changes an answer of this category")
            continue
        say(f"{category}: {' '.join(row['prompt'].split())}")
        for name, text in zip(("unedited", "edited"), mark_change(row), strict=True):
            say(f"    {name:9} {text}")
        words = row["baseline"].split() == row["edited"].split()
        what = (
            "the words are the same, its tokens differ" if words else f"{MARKS} marks what differs"
        )
        say(f"    edited by {row['intervention']}: {what}")


MARKS, WORDS, BEFORE = (
    "[[ ]]",
    40,
    10,
)  # words of an answer that are shown, of these before a change


def mark_change(row):
    """The unedited and the edited answer of a row of changes, the words that differ in [[ ]].

    Of a long answer the words around the first that differs are shown.
    """
    words = [row[side].split() for side in ("baseline", "edited")]
    blocks = difflib.SequenceMatcher(None, *words, autojunk=False).get_opcodes()
    marked = [[], []]
    for kind, *ends in blocks:
        for side, (start, end) in enumerate((ends[:2], ends[2:])):
            part = words[side][start:end]
            if kind != "equal" and part:
                part = [f"[[{part[0]}", *part[1:]]
                part[-1] += "]]"
            marked[side] += part
    pairs = enumerate(zip(*words, strict=False))
    same = next((i for i, (a, b) in pairs if a != b), min(map(len, words)))
    start = max(0, same - BEFORE)
    return [shorten(own, start) for own in marked]


def shorten(words, start=0):
    """At most WORDS words from `start` on, with ... for those left out; (nothing) for none."""
    shown = " ".join(words[start : start + WORDS])
    before = "... " if start else ""
    after = " ..." if len(words) > start + WORDS else ""
    return f"{before}{shown}{after}" if words else "(nothing)"
