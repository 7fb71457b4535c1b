"""Where the final token looks: its attention on parts of the text, beside uniform attention."""

import numpy as np

from rolecircuits.inputs.categories import order_categories
from rolecircuits.report.overview import category_name
from rolecircuits.report.packing import pack_numbers
from rolecircuits.report.section import Context, Section, run_facts, run_key
from rolecircuits.runs.arrays import Run
from rolecircuits.stats.contrasts import categories_of
from rolecircuits.stats.masses import SEGMENTS
from rolecircuits.stats.moments import category_mean

SEE = (
    "How the attention of the last token is shared out: a category whose bar has more of the slot, "
    "the words that name the person, than uniform attention has, reads the person."
)
TEXT_SEGMENTS = ("user_text", "assistant_text")
PARTS = {  # in the order of their bars
    "sink": "sink (first token)",
    "system_text": "system text",
    "template": "template",
    "user_text": "user's text, other words",
    "assistant_text": "assistant's text, other words",
    "slot": "slot (words of the person)",
    "assistant_header": "assistant header",
}


def masses_section(context: Context):
    """The Section, or None where no run holds masses."""
    runs = {key: run for key, run in context.runs.items() if run.segment_mass is not None}
    if not runs:
        return None
    of_runs = {key: run_masses(run) for key, run in runs.items()}
    data = {run_key(key): plain_masses(own) for key, own in of_runs.items()}
    for key, run in runs.items():
        contrasts = context.numbers[key].contrasts
        named = {name: categories_of(contrast) for name, contrast in contrasts.items()}
        data[run_key(key)] |= {"facts": run_facts(run, key), "contrasts": named}
    first = next(iter(of_runs))
    static = {"of": " ".join(first)} | static_table(of_runs[first])
    return Section("masses", "Where it looks", SEE, static, {"runs": data, "names": PARTS})


def run_masses(run: Run):
    """Mean masses over the prompts of every category.

    returns  {"categories": names, "parts": ids of PARTS that occur, "heads": [category, layer,
             head, part], "uniform": [category, layer, part]}; the parts sum to 1
    """
    mass, uniform = split_slot(run)
    categories = order_categories(run.category.tolist())
    heads, flat = (
        np.stack([category_mean(own.astype(np.float64), run.category, name) for name in categories])
        for own in (mass, uniform)
    )
    present = [i for i in range(len(PARTS)) if heads[..., i].any() or flat[..., i].any()]
    names = list(PARTS)
    parts = [names[i] for i in present]
    found = {"categories": categories, "parts": parts}
    return found | {"heads": heads[..., present], "uniform": flat[..., present]}


def split_slot(run: Run):
    """(masses [prompt, layer, head, part], uniform [prompt, layer, part]) in the order of PARTS.

    The slot is taken out of the segment that holds it, the text of the user or the assistant.
    """
    names, stored = list(PARTS), run.segment.tolist()
    out = [
        np.zeros((*own.shape[:-1], len(names))) for own in (run.segment_mass, run.segment_uniform)
    ]
    for into, own in zip(out, (run.segment_mass, run.segment_uniform), strict=True):
        for i, name in enumerate(stored):
            into[..., names.index(name)] = own[..., i]
    mass, uniform = out
    for prompt, (start, _) in enumerate(run.slot.tolist()):
        if start < 0 or run.slot_mass is None:
            continue
        segments = run.prompts[prompt].get("segments")
        name = SEGMENTS[segments[start]] if segments and start < len(segments) else "user_text"
        place = names.index(name if name in TEXT_SEGMENTS else "user_text")
        for into, own in ((mass, run.slot_mass), (uniform, run.slot_uniform)):
            into[prompt, ..., names.index("slot")] = own[prompt]
            into[prompt, ..., place] -= own[prompt]
    return np.clip(mass, 0, None), np.clip(uniform, 0, None)


def plain_masses(found):
    """What masses.js needs of a run; single heads are kept in 254 steps."""
    plain = {"categories": found["categories"], "parts": found["parts"]}
    plain["layers"] = pack_numbers(found["heads"].mean(axis=2))
    return plain | {
        "uniform": pack_numbers(found["uniform"]),
        "heads": pack_numbers(found["heads"], 8),
    }


def static_table(found):
    """The mean over layers and heads as a table: {"columns", "rows"} of texts."""
    means, uniform = found["heads"].mean(axis=(1, 2)), found["uniform"].mean(axis=1)
    columns = [*map(category_name, found["categories"]), "uniform"]
    rows = []
    for i, part in enumerate(found["parts"]):
        cells = [f"{mean:.3f}" for mean in means[:, i].tolist()]
        rows.append({"part": PARTS[part], "cells": [*cells, f"{uniform[:, i].mean():.3f}"]})
    return {"columns": columns, "rows": rows}
