"""Answers of experiment.py in a report: beside their prompts, and before and after an edit."""

import difflib
import re

from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.specs import same_weights
from rolecircuits.report.overview import category_name
from rolecircuits.runs.files import read_json
from rolecircuits.runs.record import FED

WORDS = re.compile(r"\s+|\w+|[^\w\s]")
MAX_WORDS = 4000  # of a pair of answers that is compared word by word
MAX_SHOWN = 40  # changed answers of an edit


def read_answers(folder):
    """(generation_results.json, experiment_config.json) of a run of experiment.py, checked."""
    path = folder / "generation_results.json"
    results = read_json(path)
    whole = isinstance(results, dict) and isinstance(results.get("changes"), list)
    rows = results.get("baseline") if whole else None
    wanted = {"baseline": ("id", "text"), "changes": ("intervention", "id", "baseline", "edited")}
    if not isinstance(rows, list):
        raise UserError(f"{path}: baseline or changes is missing; run experiment.py again")
    for name, fields in wanted.items():
        for i, row in enumerate(results[name]):
            texts = [row.get(field) if isinstance(row, dict) else None for field in fields]
            if not all(isinstance(text, str) for text in texts):
                raise UserError(f"{path}: {name}[{i}] lacks one of {', '.join(fields)}")
    return results, read_json(folder / "experiment_config.json")


def answers_of_runs(runs, results, config):
    """{(set, side): {prompt id: answer}} of the runs of the model that answered, fed alike."""
    texts = {row["id"]: row["text"] for row in results["baseline"]}
    found = {}
    for key, run in runs.items():
        fed = all(run.config["prompts"].get(name) == config["prompts"].get(name) for name in FED)
        own = {name: texts[name] for name in run.prompt_id.tolist() if name in texts}
        if fed and own and same_weights(run.config["model"], config["model"]):
            found[key] = own
    return found


def mark_changes(before, after):
    """What an edit changed in an answer: [("same" | "gone" | "new", text), ...].

    Words, marks and white space are the units; joined, "same" and "gone" give `before`, "same" and
    "new" give `after`.
    """
    old, new = WORDS.findall(before), WORDS.findall(after)
    if len(old) + len(new) > MAX_WORDS:
        parts = [("gone", before), ("new", after)] if before != after else [("same", before)]
        return [part for part in parts if part[1]]
    marked = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, old, new, False).get_opcodes():
        if kind == "equal":
            marked.append(("same", "".join(old[i:j])))
            continue
        marked += [("gone", "".join(old[i:j]))] if j > i else []
        marked += [("new", "".join(new[k:m]))] if m > k else []
    return marked


def shown_parts(before, after):
    """`mark_changes` with line ends as marks, so that one that came or went is seen."""
    return [(kind, text.replace("\n", "\u23ce")) for kind, text in mark_changes(before, after)]


def changed_answers(results):
    """[{"edit", "n", "n_changed", "rows": [{"id", "category", "prompt", "parts"}]}] by edit."""
    edits = []
    for name in dict.fromkeys(row["intervention"] for row in results["changes"]):
        rows = [row for row in results["changes"] if row["intervention"] == name]
        changed = [row for row in rows if row["baseline"] != row["edited"]]
        shown = [
            {"id": row["id"], "category": category_name(row.get("category", ""))}
            | {"prompt": row.get("prompt", "")}
            | {"parts": shown_parts(row["baseline"], row["edited"])}
            for row in changed[:MAX_SHOWN]
        ]
        said = {"edit": printable(name), "n": len(rows), "n_changed": len(changed)}
        edits.append(said | {"rows": shown})
    return edits


def answer_rows(results, facts):
    """Rows of answer_changes.csv, those that the page shows.

    facts  the columns that every CSV begins with
    """
    rows, counts = [], {}
    for row in results["changes"]:
        name, changed = row["intervention"], row["baseline"] != row["edited"]
        counts[name] = counts.get(name, 0) + changed
        if changed and counts[name] <= MAX_SHOWN:
            of = {"id": row["id"], "category": row.get("category", "")}
            of |= {"prompt": row.get("prompt", ""), "unedited": row["baseline"]}
            rows.append(facts | {"edit": name} | of | {"edited": row["edited"]})
    return rows
