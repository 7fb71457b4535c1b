"""The prompts of a report, each with its values, its tokens and what its final token attends to."""

import numpy as np

from rolecircuits.inputs.categories import order_categories
from rolecircuits.report import answers, packing
from rolecircuits.report.overview import category_name
from rolecircuits.report.section import Context, Section, run_facts, run_key
from rolecircuits.report.tokens import readable_tokens
from rolecircuits.runs.arrays import Run
from rolecircuits.stats.entropy import has_sink_key

SEE = (
    "Which tokens the last token of a prompt attends to: open a prompt, move through the layers, "
    "and compare the same sentence about another person below it."
)
STATIC_PROMPTS = 60
SHADES = 10  # of the strips that are read without JavaScript


def prompts_section(context: Context):
    """The Section; every run of the context is in it."""
    strengths = {key: head_strengths(own) for key, own in context.numbers.items()}
    packed = packing.pack_runs(context.runs, strengths)
    answered = read_answers(context)
    runs = {}
    for key, run in context.runs.items():
        own = run_data(run, context.numbers[key].prompt_layers, packed.get(key))
        texts = answered.get(key)
        own["answers"] = [texts.get(name) for name in run.prompt_id.tolist()] if texts else None
        runs[run_key(key)] = own | {"facts": run_facts(run, key)}
    key, run = next(iter(context.runs.items()))
    note = describe_packing(packed, context.runs)
    rows = static_rows(run, context.numbers[key].prompt_layers["normalised"])
    static = {"rows": rows, "of": " ".join(key), "n": len(run.category), "note": note}
    static["strips"] = static_strips(run)
    return Section("prompts", "Prompts", SEE, static, {"runs": runs, "note": note})


def head_strengths(computed):
    """|g| of the first contrast, normalised, of every head [layer, head], of RunNumbers."""
    first = next(iter(computed.contrast_heads["normalised"].values()), None)
    return None if first is None else np.abs(first["g"])


def read_answers(context):
    """{(set, side): {prompt id: answer}} of every run of experiment.py; of two for one run the
    later one counts.
    """
    found = {}
    for folder in context.folders.answers:
        for key, texts in answers.answers_of_runs(
            context.runs, *answers.read_answers(folder)
        ).items():
            found[key] = found.get(key, {}) | texts
    return found


def run_data(run: Run, values, packed):
    """What prompts.js needs of a run.

    values  {kind: [prompt, layer]}, means over heads    packed  its packing.Packed, or None
    """
    strings = [row.get("token_strings") or [] for row in run.prompts]
    readable = readable_tokens(text for row in strings for text in row)
    vocabulary = list(dict.fromkeys(readable.values()))
    place = {text: i for i, text in enumerate(vocabulary)}
    tokens = [[place[readable[text]] for text in row] for row in strings]
    known = all(len(row) == n for row, n in zip(tokens, run.n_tokens.tolist(), strict=True))
    return {
        "id": run.prompt_id,
        "text": [row["text"] for row in run.prompts],
        "category": run.category,
        "frame": run.frame,
        "filler": run.filler,
        "crossed": run.crossed,
        "n_tokens": run.n_tokens,
        "slot": run.slot,
        "span": run.span,
        "vocabulary": vocabulary,
        "tokens": tokens if known else None,
        "sink_key": not has_sink_key(run.visible_keys).any(),
        "n_layers": run.n_layers,
        "n_heads": run.n_heads,
        "layers": {kind: packing.pack_numbers(own) for kind, own in values.items()},
        "rank": packing.frame_ranks(run),
        "attention": packed.plain() if packed and known else None,
    }


def describe_packing(packed, runs):
    """One or two sentences: in how many steps attention is kept, and of which heads."""
    if not packed:
        return "These runs hold no attention of the final token; run the analysis again to see it."
    levels = min(own.levels for own in packed.values())
    said = (
        f"Attention is kept in {levels} steps of its square root: it may be off by "
        f"{packing.largest_error(1, levels):.2g} near 1 and by "
        f"{packing.largest_error(0.01, levels):.1g} near 0.01."
    )
    cut = [key for key, own in packed.items() if own.heads is not None]
    if cut:
        kept = " and ".join(str(len(packed[key].heads)) for key in cut)
        of = " and ".join(str(runs[key].n_layers * runs[key].n_heads) for key in cut)
        said += (
            f" To keep this page small it holds the mean over heads of every layer and {kept} of "
            f"{of} heads: those with the largest |g| of the first contrast and those with the most "
            "attention on the words that differ, beyond uniform, in turn."
        )
    return said


def static_rows(run: Run, values):
    """Rows of the table without JavaScript: text, category, frame, mean normalised value."""
    means = values.mean(axis=1).tolist()
    rows = zip(run.prompts, run.category.tolist(), run.frame.tolist(), means, strict=True)
    return [
        {
            "text": row["text"],
            "category": category_name(category),
            "frame": frame,
            "value": f"{mean:.4f}",
        }
        for row, category, frame, mean in list(rows)[:STATIC_PROMPTS]
    ]


def static_strips(run: Run):
    """The persons of the first frame, shaded: {"layer", "persons": [{"category", "tokens"}]}.

    The layer is that with the most attention on the slot; None where there is no slot or no row.
    """
    if run.final_row is None or not run.has_slots:
        return None
    layer = int(run.slot_mass.mean(axis=(0, 2)).argmax())
    same = (run.frame == run.frame[0]) & (run.filler == run.filler[0])
    persons = []
    for name in order_categories(run.category.tolist()):
        for i in np.flatnonzero(same & (run.category == name))[:1].tolist():
            strings = run.prompts[i].get("token_strings")
            if not strings:
                return None
            row = run.final_row[i, layer, :, : len(strings)].mean(axis=0, dtype=np.float32)
            shades = np.rint(np.sqrt(row) * SHADES).astype(int).tolist()
            readable = readable_tokens(strings)
            tokens = [
                {"text": readable[text], "shade": shade, "attention": f"{mass:.3f}"}
                for text, shade, mass in zip(strings, shades, row.tolist(), strict=True)
            ]
            persons.append({"category": category_name(name), "tokens": tokens})
    return {"layer": layer, "persons": persons}
