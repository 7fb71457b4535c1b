"""Sign and significance of RFC and RSI by layer, a line a choice of the analysis."""

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import BoundaryNorm, ListedColormap, to_hex
from matplotlib.patches import Patch

from rolecircuits.drawing import style
from rolecircuits.drawing.study import Study
from rolecircuits.drawing.style import Grid
from rolecircuits.inputs.errors import printable
from rolecircuits.runs.files import prepare_folder, write_csv
from rolecircuits.stats.indices import INDICES, KIND_NAMES, KINDS
from rolecircuits.stats.multiverse import multiverse_rows
from rolecircuits.stats.role_tests import infer_kinds

STRENGTH = {"": 0, "none": 1, "BH": 2, "max-T": 3}
NAMES = {"": "not tested", "none": "neither", "BH": "BH only", "max-T": "max-T over all choices"}
SHADES = (0.1, 0.27, 0.42)  # how far from the middle of the diverging map each strength lies
BELOW, ABOVE = (  # not tested, and by strength, in the colours of every sign
    ("#e4e4e4", *(to_hex(colormaps[style.DIVERGING](0.5 + side * shade)) for shade in SHADES))
    for side in (-1, 1)
)
TITLE = "Every choice of the analysis"
CAPTION = (
    "Every line is one way to analyse the same runs. Red: above the null, self-referent is the "
    "more focused; blue: below it. The darker, the stronger: passes neither, Benjamini-Hochberg "
    "over the layers, max-T over all choices of one run, all at 0.05. Grey: no test, because the "
    "design allows none or words count as fixed. By unit: frames, or prompts that begin alike, are "
    "drawn together; the other lines take prompts as if they were independent, which they are not, "
    "and test even what the design cannot identify."
)


def draw_multiverse(rows, label, title=TITLE):
    """(Figure, rows): RFC left, RSI right, a line a choice, a cell a layer.

    rows  of multiverse.csv, of one run or several (column "side", if there)
    """
    lines = order_lines(rows)
    n_layers = 1 + max(row["layer"] for row in rows)
    longest = max(map(len, map(name_line, lines)))
    width = max(4.0, min(6.5, 0.13 * n_layers))
    texts = (title, label, CAPTION)
    handles = [
        Patch(color=colours[rank], label=f"{side}, {NAMES[name]}")
        for side, colours in (("above", ABOVE), ("below", BELOW))
        for name, rank in STRENGTH.items()
        if name
    ]
    grid = Grid((1, 3), (width, 0.21 * len(lines) + 0.2), gap=(0.3, 0.5))
    figure, axes = style.open_panels(grid, texts, handles)
    names, *panels = axes[0]
    names.axis("off")
    names.set_ylim(len(lines) - 0.5, -0.5)
    size = min(8.0, width * 72 / (0.58 * longest))
    for at, line in enumerate(lines):
        look = {"ha": "right", "va": "center", "transform": names.get_yaxis_transform()}
        names.text(1.0, at, name_line(line), fontsize=size, **look)
    colours = ListedColormap([*BELOW[:0:-1], BELOW[0], *ABOVE[1:]])
    scale = BoundaryNorm(np.arange(-3.5, 4), colours.N)
    for panel, index in zip(panels, INDICES, strict=True):
        cells = np.zeros((len(lines), n_layers))
        for row in rows:
            if row["index"] == index:
                sign = -1 if row["sign"] < 0 else 1
                cells[lines.index(line_of(row)), row["layer"]] = (
                    sign * STRENGTH[row["significance"]]
                )
        panel.imshow(cells, aspect="auto", cmap=colours, norm=scale, interpolation="nearest")
        panel.grid(False)
        for at in range(1, len(lines)):
            if lines[at][:2] != lines[at - 1][:2]:
                panel.axhline(at - 0.5, color="black", linewidth=1.2)
        panel.set_title(index.upper())
        panel.tick_params(labelleft=False, left=False)
        style.number_axis(panel.xaxis, n_layers, "layer")
    return figure, rows


def draw_run(study: Study, title):
    """11: the choices of one run."""
    draws = study.seed, study.n_resamples
    inferred = infer_kinds(study.run, *draws)
    rows = multiverse_rows(study.run, inferred, *draws)
    return draw_multiverse(rows, study.subtitle, title)


def save_multiverse(rows, label, tables, figures):
    """multiverse.csv into the folder `tables`, and the figure into `figures` unless None; nothing
    without rows.
    """
    if not rows:
        return
    write_csv(prepare_folder(tables) / "multiverse.csv", rows)
    if figures is not None:
        style.save_drawing(figures, "multiverse", draw_multiverse(rows, label))


def line_of(row):
    """What a line of the figure stands for."""
    return tuple(row.get(name, "") for name in ("side", "set", "interval", "kind", "matching"))


def order_lines(rows):
    """The lines of the figure, each once: those of one run, set and interval together, by kind."""
    lines = list(dict.fromkeys(map(line_of, rows)))
    blocks = list(dict.fromkeys(line[:3] for line in lines))
    return sorted(lines, key=lambda line: (blocks.index(line[:3]), KINDS.index(line[3])))


def name_line(line):
    """A line in words."""
    run, label, interval, kind, matching = line
    matched = "" if matching == "none" else f", {matching.replace('_', ' ')}-matched"
    where = " ".join(filter(None, (run, label)))
    return printable(f"{where}: {KIND_NAMES[kind]}{matched}, {interval}")
