"""Tables on the terminal, the same in every script: 80 columns wide, whatever they hold.

    print_table(["head", right("g [95 %]")], rows, "strongest heads", "> 0: ...")

A column of words is folded where there is no room; a column of numbers (`right`) is never broken
and never cut. The title says what the numbers are and what their sign means. Text is never read as
markup or emoji. table_files.py writes the same tables to a file.
"""

import math
import textwrap

from rich.box import SIMPLE
from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table

from rolecircuits.drawing.table_files import PrintedTable, record
from rolecircuits.inputs.arguments import ALPHA
from rolecircuits.inputs.errors import printable
from rolecircuits.stats.audit import audit_design, audit_rows, cluster_rows
from rolecircuits.stats.contrasts import INTERACTIONS, name_of
from rolecircuits.stats.indices import INDICES, KIND_NAMES
from rolecircuits.stats.verdicts import contrast_cells, describe_interactions, rows_of

GAP, LEAST_WORDS = 2, 8  # characters between columns, and of a column of words at least
TREND_NAMES = {"plain": "as is", "linear": "linear", "quadratic": "quadratic"}
HOW_TO_READ = (
    "read the quadratic r and its p: profiles that drift with depth correlate by their trends, and "
    "p of the other columns does not hold then"
)
HOW_MANY_SHIFTS = (
    "L layers have L shifts: under 21 cannot reach 0.05; layers are not free of each other, so do "
    "not read that p"
)
FOCUSED = "> 0: self-referent is the more focused"
FIRST_FOCUSED = "> 0: the first-named category is the more focused"
SIDE_FOCUSED = "> 0: the first side is the more focused"  # a side may be a sum of categories


def right(heading):
    """A Column of numbers: aligned right, never broken over lines."""
    return Column(heading, justify="right", no_wrap=True)


def interval(heading):
    """A Column of numbers with their intervals: the numbers below each other, never broken."""
    return Column(heading, no_wrap=True)


def print_table(columns: list[str | Column], rows, title="", note=""):
    """Print rows of texts and numbers under their columns, at the width of the terminal or 80.

    columns  headings of words, which are folded; `right` of numbers, or `interval`
    title    what the numbers are and what their sign means    note  how they are read, below
    Where the numbers alone need more room, lines are longer: no digit is ever left out.
    """
    columns = [Column(c, overflow="fold") if isinstance(c, str) else c.copy() for c in columns]
    rows = [[str(cell) for cell in row] for row in rows]
    table = Table(
        *columns, box=SIMPLE, show_edge=False, pad_edge=False, collapse_padding=True, padding=(0, 1)
    )
    for row in rows:
        table.add_row(*map(printable, row))
    console = Console(markup=False, highlight=False, emoji=False)
    least = GAP * (len(columns) - 1)
    for i, column in enumerate(columns):
        texts = [*column.header.split("\n"), *(row[i] for row in rows)]
        longest = max(cell_len(printable(text)) for text in texts)
        least += longest if column.no_wrap else min(longest, LEAST_WORDS)
    console.width = max(console.width, least)
    print()
    say(title)
    console.print(table)
    say(note)
    headings = [" ".join(column.header.split()) for column in columns]
    numeric = [column.justify == "right" for column in columns]
    record(PrintedTable(headings, numeric, rows, title, note))


def say(text):
    """Print a text in lines of at most the terminal's width, 80 where there is none.

    Its own lines stay lines; where one is broken, what follows is indented.
    """
    width = Console().width
    for line in filter(None, text.split("\n")):
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        whole = printable(line).replace("> 0", ">\0" + "0")  # a sign is not broken over lines
        how = {"subsequent_indent": indent, "break_on_hyphens": False}
        for part in textwrap.wrap(whole, width, **how):
            print(part.replace("\0", " "))


def with_interval(value, low, high, form="+.3f"):
    """A number with its interval in one cell, - for what is undefined; None and NaN are that."""
    if value is None or value != value:
        return "-"
    ends = "" if low is None or low != low else f" [{low:{form}}, {high:{form}}]"
    return f"{value:{form}}{ends}"


def show(value, form):
    """A number in this form, - where it is None or NaN; p and q below 0.0001 say so."""
    if value is None or value != value:
        return "-"
    return "<0.0001" if form == ".4f" and value < 1e-4 else format(value, form)


def print_audit(run):
    """How a run's prompts are built, and the verdict; returns what stats.audit found."""
    audit = audit_design(run)
    columns = ["", right("groups"), right("median"), right("min\n@layer"), right("max\n@layer")]
    columns += [right("by\nchance"), right("beyond\nthe other")]
    title = f"{run.label}: how its prompts are built, share of the variance of normalised entropy"
    print_table(columns, audit_rows(audit), title)
    columns = ["category", right("prompts"), right("frames"), right("effective\nframes")]
    columns += [right("design\neffect"), right("effective\nn")]
    title = "as many independent frames and prompts are these worth"
    icc = audit["clusters"]["median_icc"]
    few = "too few frames, or one prompt in each"
    shown = f"undefined: {few}" if icc != icc else f"{icc:.2f}"
    note = f"correlation inside a frame (ICC), median over layers: {shown}"
    print_table(columns, cluster_rows(audit), title, note)
    matched = audit["first_word_matched"]
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
            say(f"{what}: {', '.join(shown)}")
    if odd := audit["pairs_with_other_first_words"]:
        ids = ", ".join(map(printable, odd[:6])) + (", ..." if len(odd) > 6 else "")
        say(f"{len(odd) // 2} matched pairs change their first word with the person: {ids}")
    say(f"{'WARNING: ' if audit['flagged'] else ''}{audit['verdict']}")
    return audit


def print_contrasts(run, chosen, compared):
    """Every contrast over the layers, and an interaction layer by layer beside its control.

    chosen  {name: contrast}    compared  rows of contrasts.csv
    """
    rows = [contrast_cells(name, compared) for name in chosen]
    title = f"{run.label}: what its contrasts rest on"
    columns = ["contrast", right("prompts"), right("frames"), right("effective n")]
    note = "effective n: as many independent prompts would give this interval (median over layers)"
    print_table(columns, [row[:4] for row in rows], title, note)
    title = f"{run.label}: focus (normalised entropy with its sign turned), first - second, mean "
    title += f"over heads; {SIDE_FOCUSED if set(chosen) & set(INTERACTIONS) else FIRST_FOCUSED}"
    columns = ["contrast", right("mean"), right("min @layer"), right("max @layer")]
    columns += map(right, ("p", "BH", "max-T", "layers"))
    note = f"p, BH, max-T: layers below {ALPHA}, uncorrected and corrected"
    print_table(columns, [[row[0], *row[4:]] for row in rows], title, note)
    families = [name for name in chosen if name in INTERACTIONS]
    columns = [right("layer"), interval("first - second [95 %]"), right("q"), right("max-T p")]
    for name in families:
        shown = name if name == families[0] else f"{name} (the control)"
        title = f"{shown}: interaction of person and turn, layer by layer; {_sign_of(chosen[name])}"
        print_table(columns, map(_interaction_cells, rows_of(compared, name)), title)
    if families:
        say(describe_interactions(families, compared))


def _sign_of(contrast):
    """What a value above 0 of a contrast says, its sides being categories or sums of them."""
    return f"> 0: {name_of(contrast[0])} more focused than {name_of(contrast[1])}"


def _interaction_cells(row):
    """Cells of one layer of an interaction."""
    change = with_interval(row["estimate"], row["low"], row["high"], "+.4f")
    return [row["layer"], change, show(row["q"], ".3f"), show(row["p_max"], ".3f")]


def print_heads(run, rows, contrast):
    """The first rows of head_ranking.csv as a table."""
    cells = []
    keys = ("estimate", "g", "g_low", "g_high", "p", "q", "p_max")
    for row in rows:
        value = {key: row[f"{contrast}_{key}"] for key in keys}
        g = with_interval(value["g"], value["g_low"], value["g_high"], "+.2f")
        tests = [show(value[name], ".4f") for name in ("p", "q", "p_max")]
        difference = show(value["estimate"], "+.4f")
        cells.append([row["layer"], row["head"], difference, g, *tests])
    columns = list(map(right, ("layer", "head", "first - second", "p", "q (BH)", "max-T p")))
    columns.insert(3, interval("g [95 %]"))
    title = f"{run.label}: strongest heads, {contrast}, focus (normalised entropy with its sign "
    sign = _sign_of(INTERACTIONS[contrast]) if contrast in INTERACTIONS else FIRST_FOCUSED
    print_table(columns, cells, f"{title}turned) and Hedges g; {sign}")


def print_head_changes(rows, n, agreement):
    """The first n heads of either ranking of head_changes.csv, and how the two agree.

    agreement  (r, heads that are first in both) of head_changes.compare_rankings
    """
    columns = list(map(right, ("ours", "study", "layer", "head")))
    columns += [interval("g [95 %]"), right("max-T p"), right("DiD\nnats"), right("of\nlogs")]
    columns += [right("same\nsign")]
    chosen = [row for row in rows if min(row["rank"], row["study_rank"]) <= n]
    cells = []
    for row in chosen:
        place = [row[name] for name in ("rank", "study_rank", "layer", "head")]
        g = with_interval(row["g"], row["g_low"], row["g_high"], "+.2f")
        did = [show(row["did"], "+.3f"), show(row["did_log_ratio"], "+.2f")]
        cells.append([*place, g, show(row["p_max"], ".4f"), *did, show(row["consistency"], ".2f")])
    title = f"instruct - base, self_referent - neutral: the first {n} heads by either ranking; "
    note = f"both rankings name {agreement[1]} of {n}; Spearman's r over all heads "
    note += f"{show(agreement[0], '+.2f')}. DiD, of logs, same sign: what the study ranks by"
    print_table(columns, cells, f"{title}> 0: self-referent gains focus", note)


def print_main_numbers(name, numbers, formats, pair=""):
    """Means over layers of RFC and RSI of both runs, and what differs, a line an index and set.

    numbers  {prompt set: what run_pairs.main_numbers gives}    formats  {run: prompt format}
    pair     what the difference is one of, if they were compared
    """
    sets = [[(label, line) for line in lines] for label, lines in numbers.items()]
    means, differences = [], []
    for i, (label, line) in enumerate(
        pair for of_index in zip(*sets, strict=True) for pair in of_index
    ):
        index = "" if i % len(sets) else f"{line['index'].upper()} {KIND_NAMES[line['kind']]}"
        place = [index, label]
        cells = []
        for side in formats:
            value, null, passing = line[side]
            cells += [show(value, "+.3f"), show(null, "+.3f"), show(passing, "d")]
        means.append(place + cells)
        entry = line["difference"]
        cells = [with_interval(entry["value"], entry["low"], entry["high"])]
        differences.append([*place, *cells, show(entry["null"], "+.3f"), show(entry["bh"], "d")])
    below = f"null: length null. BH: layers that pass Benjamini-Hochberg at {ALPHA}"
    columns = ["index", "prompts"]
    for run, form in formats.items():
        columns += [right(f"{run},\n{form}"), right("null"), right("BH")]
    print_table(columns, means, f"{name}: means over layers; {FOCUSED}", below)
    columns = ["index", "prompts", interval("instruct - base [95 %]"), right("null"), right("BH")]
    title = f"{name}: what differs between the runs, means over layers; > 0: self-referent gains "
    title += "focus" + (f" ({pair})" if pair else "")
    print_table(columns, differences, title, f"{below}; raw differences are not tested")


def print_profile_correlations(correlations, kind):
    """Rows of cross_model_correlations.csv as tables, and what was corrected below them."""
    kind = KIND_NAMES.get(kind, kind)
    title = f"{kind}: Pearson's r of layer profiles (p), as they are and with a trend removed"
    columns = ["models", "index", right("layers")]
    columns += [right(f"{name}\nr (p)") for name in TREND_NAMES.values()]
    rows = [_profile_cells(row) for row in correlations]
    print_table(columns, rows, title, HOW_TO_READ)
    columns = ["models", "index", right("layers"), right("effective\nlayers")]
    columns += map(right, ("p if all\nare free", "p by\nshifts", "p by\nphases", "changes\nr (p)"))
    title = f"{kind}: the r as is under other nulls, and r of the changes from layer to layer"
    print_table(columns, [_null_cells(row) for row in correlations], title, HOW_MANY_SHIFTS)
    corrected = [row for row in correlations if row["shared_rows"]]
    if corrected:
        columns = ["models", "index", right("rows"), "trend", right("r"), right("corrected")]
        columns += [right("signal\nfirst"), right("signal\nsecond")]
        rows = [cells for row in corrected for cells in _corrected_cells(row)]
        title = f"{kind}: r without the noise of the shared prompts"
        signal = "share of each profile's variance that is no such noise; below 0.5 do not read"
        print_table(columns, rows, title, f"signal: {signal}")


def _profile_cells(row):
    """Cells of one row of cross_model_correlations.csv: r (p) with each trend removed."""
    trends = [f"{row[f'{trend}_r']:+.3f} ({row[f'{trend}_p']:.3f})" for trend in TREND_NAMES]
    return [_pair_of(row), index_name(row), row["n_points"], *trends]


def _null_cells(row):
    """Cells of the same row: effective layers, p under other nulls, r (p) of the changes."""
    numbers = [show(row["effective_n"], ".1f")]
    numbers += [show(row[name], ".3f") for name in ("independent_p", "plain_shift_p", "phase_p")]
    changes = (show(row["differences_r"], "+.3f"), show(row["differences_p"], ".3f"))
    numbers.append("{} ({})".format(*changes))
    return [_pair_of(row), index_name(row), row["n_points"], *numbers]


def print_profile_summary(rows, title):
    """Rows of cross_model_summary.csv as two tables: all layers, and what single layers make."""
    columns = ["model", "index"]
    columns += map(right, ("layers", "mean", "sd", "below", "near 0", "above"))
    print_table(columns, [_summary_cells(row) for row in rows], title)
    columns = ["model", "index", right("median"), right("farthest layer\n(MADs off)")]
    columns += map(right, ("mean\nwithout it", "own intervals\n< 0, > 0", "half\nwidth"))
    note = "MADs off: distance from the median in median absolute deviations; half width: median"
    print_table(columns, [_layer_cells(row) for row in rows], "the same, layer by layer", note)


def _summary_cells(row):
    shares = [f"{row[f'share_{part}']:.0%}" for part in ("below", "near_zero", "above")]
    moments = [f"{row['mean']:+.4f}", f"{row['sd']:.4f}"]
    return [row["model"], index_name(row), row["n_layers"], *moments, *shares]


def _layer_cells(row):
    """Cells of one row; - where the table has no intervals."""
    mads = show(row["farthest_mads"], ".0f")
    farthest = f"{row['farthest']:+.3f} @{row['farthest_layer']} ({mads})"
    counts = [show(row[f"interval_{side}"], "d") for side in ("below", "above")]
    cells = [row["model"], index_name(row), f"{row['median']:+.4f}", farthest]
    cells += [f"{row['mean_without']:+.4f}", ", ".join(counts)]
    return [*cells, show(row["interval_half_width"], ".3f")]


def _corrected_cells(row):
    """Two rows of cells of one row: r with its correction; - where too little is left."""
    for trend in ("plain", "quadratic"):
        first = trend == "plain"
        place = [_pair_of(row), index_name(row), row["shared_rows"]] if first else [""] * 3
        r, corrected = (row[f"{trend}_{name}"] for name in ("r", "corrected_r"))
        cells = [
            TREND_NAMES[trend],
            f"{r:+.3f}",
            "-" if math.isnan(corrected) else f"{corrected:+.3f}",
        ]
        yield place + cells + [f"{row[f'{trend}_signal_{end}']:.2f}" for end in "ab"]


def index_name(row):
    """RFC or RSI, of a row whose index is a column of detailed_comparison.csv."""
    return row["index"].removesuffix("_diff").upper()


def _pair_of(row):
    """The two models of a row."""
    return f"{row['model_a']} - {row['model_b']}"
