"""The head of the page, the summary and the method."""

from rolecircuits.report.section import Section
from rolecircuits.stats.contrasts import names_of

CATEGORY_NAMES = {"self_referent": "self-referent", "third_person": "third person"}


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
    return f"Role-conditioning circuits: {' and '.join(ids)}"


def page_head(context):
    """What was read, run by run."""
    columns = ("set", "run", "model", "format", "prompts", "frames", "weights (SHA-256)", "made")
    rows = []
    for (name, side), run in context.runs.items():
        model, made = run.config["model"], run.config.get("created")
        weights = (model.get("weights_sha256") or "-")[:16]
        n, frames = len(run.category), len(set(run.frame.tolist()))
        rows.append((name, side, model["id"], run.prompt_format, n, frames, weights, made or "-"))
    checked = "compared with the SHA-256 of their manifests before they were read"
    files = f"Files of the runs: {checked if context.verified else 'not ' + checked}."
    return {"columns": columns, "rows": rows, "files": files, "notes": context.notes}


def summary_section(context):
    """The findings in words and numbers."""
    return Section("summary", "Summary", "Which layers differ, by how much, and why.")


def method_section(context):
    """Formulas, sign, kinds, columns, how to repeat."""
    return Section("method", "Method", "What each number is and how to make it again.")
