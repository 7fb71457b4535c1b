"""The table of run_pipeline.py --list: the families that there are, and what each takes."""

from rolecircuits.drawing.tables import print_table, right
from rolecircuits.models.families import COST, SIDES, load_families

TITLE = "families, and what run_pipeline.py --family NAME takes"
NOTE = (
    "bf16 GB: weights of one model in bfloat16. peak GB: memory in float32, one model at a time. "
    "time: on two CPU cores, without the download. All by arithmetic (docs/SCALE.md); from 7B on "
    "take --dtype bfloat16 --device cuda"
)


def print_families(path):
    """Two rows a family of the file, and what is to be known of some below."""
    families = load_families(path)
    rows = [row for name, family in families.items() for row in family_cells(name, family)]
    columns = ["family", "base, then instruct", right("layers\nx heads")]
    columns += [right("bf16\nGB"), right("peak\nGB"), right("time")]
    notes = [f"{name}: {family['note']}" for name, family in families.items() if "note" in family]
    print_table(columns, rows, TITLE, "\n".join([NOTE, *notes]))


def family_cells(name, family):
    """Cells of a family's two rows; - for what its file does not say."""
    shape, cost = family.get("shape"), family.get("cost")
    size = f"{shape['L']} x {shape['H']}" if shape else "-"
    weights, peak, minutes = (cost[key] for key in COST) if cost else [None] * 3
    told = ["-" if value is None else f"{value:g}" for value in (weights, peak)]
    first, second = (family[side]["model_id"] for side in SIDES)
    return [[name, first, size, *told, show_minutes(minutes)], ["", second, "", "", "", ""]]


def show_minutes(minutes):
    """5 min, or 2.6 h from two hours on; - where it is unknown."""
    if minutes is None:
        return "-"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.2g} h"
