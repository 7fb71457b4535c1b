"""Tables on the terminal, the same in every script; text is never read as markup or emoji."""

import math

from rich.box import HEAVY_HEAD, SIMPLE
from rich.console import Console
from rich.table import Column, Table

from rolecircuits.inputs.arguments import ALPHA
from rolecircuits.inputs.errors import printable
from rolecircuits.stats.audit import audit_design, audit_rows, cluster_rows
from rolecircuits.stats.contrasts import INTERACTIONS
from rolecircuits.stats.indices import INDICES
from rolecircuits.stats.verdicts import contrast_cells, describe_interactions, interaction_cells

BOXED = {"box": HEAVY_HEAD}
PLAIN = {"box": None, "pad_edge": False}
WIDE = 132  # characters, for tables that a redirected output would break at 80
TREND_NAMES = {"plain": "as is", "linear": "linear", "quadratic": "quadratic"}
HOW_TO_READ = (
    "read the quadratic r and its p: profiles that drift with depth correlate by their trends, and "
    "p of the other columns does not hold then"
)


def right(heading):
    """A Column whose cells are aligned right."""
    return Column(heading, justify="right")


def print_audit(run):
    """How a run's prompts are built, and the verdict; returns what stats.audit found."""
    audit = audit_design(run)
    columns = ("share of the variance", "groups", "median", "min @layer", "max @layer")
    columns += ("by chance", "beyond the other")
    title = f"{run.label}: how its prompts are built"
    print_table(columns, audit_rows(audit), title, WIDE)
    columns = ("category", "prompts", "frames", "effective frames", "design effect")
    columns += ("effective n",)
    print_table(columns, cluster_rows(audit), file_width=WIDE)
    matched = audit["first_word_matched"]
    icc = audit["clusters"]["median_icc"]
    few = "too few frames, or one prompt in each"
    shown = f"undefined: {few}" if icc != icc else f"{icc:.2f}"
    print(f"correlation inside a frame (ICC), median over layers: {shown}")
    if not audit["crossed"] and matched["words"]:
        words = ", ".join(map(printable, matched["words"]))
        means = [(index, matched[f"mean_{index}"]) for index in INDICES]
        shown = [
            f"{index.upper()} {mean:+.3f} -> {matched[f'mean_{index}_matched']:+.3f}"
            for index, mean in means
            if mean == mean
        ]
        if shown:
            what = f"means over layers, plain -> matched on the first word ({words})"
            print(f"{what}: {', '.join(shown)}")
    if odd := audit["pairs_with_other_first_words"]:
        ids = ", ".join(map(printable, odd[:6])) + (", ..." if len(odd) > 6 else "")
        print(f"{len(odd) // 2} matched pairs change their first word with the person: {ids}")
    print(f"{'WARNING: ' if audit['flagged'] else ''}{printable(audit['verdict'])}")
    return audit


def print_contrasts(run, chosen, compared):
    """Every contrast over the layers, and an interaction layer by layer beside its control.

    chosen  {name: contrast}    compared  rows of contrasts.csv
    """
    columns = ("contrast", "prompts", "frames", "effective n", "mean difference", "min @layer")
    columns += ("max @layer",)
    columns += (f"layers: p / BH / max-T < {ALPHA}",)
    rows = [contrast_cells(name, compared) for name in chosen]
    title = f"{run.label}: normalised entropy, first - second, mean over heads"
    print_table(columns, rows, title, WIDE)
    print("effective n: as many independent prompts would give this interval (median over layers)")
    families = [name for name in chosen if name in INTERACTIONS]
    if families:
        columns = ["layer", *(f"{name} [95 %]  q  max-T p" for name in families)]
        title = "interaction of person and turn, and its control"
        print_table(columns, interaction_cells(families, compared), title, WIDE)
        print(describe_interactions(families, compared))


def print_main_numbers(name, numbers, formats):
    """Means over layers of RFC and RSI, a line an index and prompt set.

    numbers  {prompt set: what run_pairs.main_numbers gives}    formats  {run: prompt format}
    """
    headings = [cell for run, form in formats.items() for cell in (f"{run}, {form}", "BH")]
    columns = ["index", "prompts", *map(right, [*headings, "instruct - base [95 %]"])]
    rows = []
    for lines in zip(*numbers.values(), strict=True):
        for i, (label, (index, *cells)) in enumerate(zip(numbers, lines, strict=True)):
            rows.append(["" if i else index, label, *cells])
    print_table(columns, rows, f"{name}: means over layers (length null)", WIDE)
    print(f"BH: layers that pass Benjamini-Hochberg at {ALPHA}")


def print_profile_correlations(correlations, kind):
    """Rows of cross_model_correlations.csv as a table, and what was corrected below it."""
    columns = ("models", "index", "layers", *(f"{name}: r (p)" for name in TREND_NAMES.values()))
    columns += ("shifts: p of each",)
    title = f"{kind}: Pearson's r of layer profiles, as they are and with a trend removed"
    print_table(columns, map(_profile_cells, correlations), title, WIDE)
    print(HOW_TO_READ)
    corrected = [row for row in correlations if row["shared_rows"]]
    if corrected:
        columns = ("models", "index", "rows", "as is: r", "corrected", "signal")
        columns += ("quadratic: r", "corrected", "signal")
        title = f"{kind}: r without the noise of the shared prompts"
        print_table(columns, map(_corrected_cells, corrected), title, WIDE)
        print(
            "signal: share of each profile's variance that is no such noise; below 0.5 do not read"
        )


def _profile_cells(row):
    """Cells of one row of cross_model_correlations.csv on the terminal."""
    tested = [f"{row[f'{name}_r']:+.3f} ({row[f'{name}_p']:.3f})" for name in TREND_NAMES]
    shifts = " / ".join(f"{row[f'{name}_shift_p']:.3f}" for name in TREND_NAMES)
    return [_pair_of(row), row["index"], row["n_points"], *tested, shifts]


def _corrected_cells(row):
    """Cells of one row on the terminal: r with its correction; - where too little is left."""
    cells = []
    for trend in ("plain", "quadratic"):
        r, signals = row[f"{trend}_corrected_r"], [row[f"{trend}_signal_{end}"] for end in "ab"]
        cells += [f"{row[f'{trend}_r']:+.3f}", "-" if math.isnan(r) else f"{r:+.3f}"]
        cells += [" / ".join(f"{signal:.2f}" for signal in signals)]
    return [_pair_of(row), row["index"], row["shared_rows"], *cells]


def _pair_of(row):
    """The two models of a row."""
    return f"{row['model_a']} - {row['model_b']}"


def print_table(columns: list[str | Column], rows, title=None, file_width=None, **look):
    """Print rows of texts and numbers under their columns.

    columns     headings, or a Column where cells are aligned right or never broken over lines
    file_width  characters a line where the output is no terminal (default 80)
    look        BOXED, PLAIN or other options of rich's Table; else a line under the headings
    """
    console = Console(markup=False, highlight=False, emoji=False)
    if file_width and not console.is_terminal:
        console.width = file_width
    table = Table(*columns, title=title, **({"box": SIMPLE} | look))
    for row in rows:
        table.add_row(*(printable(cell) for cell in row))
    console.print(table)
