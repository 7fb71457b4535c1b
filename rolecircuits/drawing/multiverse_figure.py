"""Sign and significance of RFC and RSI by layer, a line a choice of the analysis."""

import numpy as np
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.patches import Patch

from rolecircuits.drawing import style
from rolecircuits.drawing.style import Grid
from rolecircuits.inputs.errors import printable
from rolecircuits.stats.indices import INDICES

STRENGTH = {"": 0, "none": 1, "BH": 2, "max-T": 3}
NAMES = {"": "not tested", "none": "neither", "BH": "BH only", "max-T": "max-T over all choices"}
BELOW = ("#f4f4f4", "#cfe1f2", "#6aaed6", "#08519c")  # not tested, and by strength
ABOVE = ("#f4f4f4", "#fddccb", "#f4886a", "#b11218")
CAPTION = (
    "Every line is one way to analyse the same runs. Red: above the null, self-referent is more "
    "focused; blue: below it. The darker, the stronger: {strengths} at 0.05; grey: no test (an "
    "estimate alone, or a design that allows none). By unit: frames, or prompts that begin alike, "
    "are drawn together; the other lines take prompts as if they were independent, which those of "
    "one frame are not."
)


def draw_multiverse(rows, label):
    """(Figure, rows): RFC left, RSI right, a line a choice, a cell a layer.

    rows  of multiverse.csv, of one run or several (column "run", if there)
    """
    lines = list(dict.fromkeys(map(line_of, rows)))
    n_layers = 1 + max(row["layer"] for row in rows)
    longest = max(map(len, map(name_line, lines)))
    width = max(4.0, min(6.5, 0.13 * n_layers))
    strengths = "does not pass, passes Benjamini-Hochberg, passes max-T over all choices"
    texts = ("Every choice of the analysis", label, CAPTION.format(strengths=strengths))
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
        panel.set_title(index.upper())
        panel.tick_params(labelleft=False, left=False)
        style.number_axis(panel.xaxis, n_layers, "layer")
    return figure, rows


def line_of(row):
    """What a line of the figure stands for."""
    return tuple(row.get(name, "") for name in ("run", "set", "interval", "kind", "matching"))


def name_line(line):
    """A line in words."""
    run, label, interval, kind, matching = line
    matched = "" if matching == "none" else f", {matching.replace('_', ' ')}-matched"
    where = " ".join(filter(None, (run, label)))
    return printable(f"{where}: {kind}{matched}, {interval}")
