"""The pairs or frames of a set beside their lengths, as prompts.py prints them."""

from rolecircuits.inputs.categories import cells_of


def describe_pairs(prompts, lengths, unit):
    """(title, columns, rows, summary) of confounder[i] beside third_person[i]."""
    partners = {p.pair_id: i for i, p in enumerate(prompts) if p.category == "third_person"}
    pairs = [
        (i, partners[p.pair_id])
        for i, p in enumerate(prompts)
        if p.category == "confounder" and p.pair_id in partners and p.pair_id >= 0
    ]
    columns = ("pair", "confounder", unit, "third_person", unit)
    rows = [
        (prompts[i].pair_id, prompts[i].text, lengths[i], prompts[j].text, lengths[j])
        for i, j in pairs
    ]
    unequal = sum(lengths[i] != lengths[j] for i, j in pairs)
    return "pairs", columns, rows, f"{len(pairs)} pairs, {unequal} of unequal length"


def describe_frames(prompts, lengths, unit):
    """(title, columns, rows, summary) of the frames of a crossed set.

    The lengths of a frame are equal where, for every filler, all categories are equally long.
    """
    length = dict(zip([prompt.id for prompt in prompts], lengths, strict=True))
    frames = {}
    for (frame, _), cell in cells_of(prompts).items():
        frames.setdefault(frame, []).append(cell)
    rows = []
    for frame, cells in frames.items():
        first = cells[0][0]
        equal = all(len({length[prompt.id] for prompt in cell}) == 1 for cell in cells)
        rows.append((frame, len(cells), first.text, length[first.id], "yes" if equal else "no"))
    columns = ("frame", "fillers", "first sentence", unit, "equal lengths")
    n = sum(row[-1] == "yes" for row in rows)
    return (
        "frames",
        columns,
        rows,
        f"{n} of {len(rows)} frames have equal lengths in all categories",
    )
