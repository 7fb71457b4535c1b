"""One look for every figure: fonts that are there, layout that clips nothing, safe text.

What the colours mean stands in `colours`; figures name them as style.NAME.
"""

import io
import logging
import textwrap
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import FuncNorm
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from rolecircuits.drawing.colours import (  # noqa: F401  figures name them as style.NAME
    ABOVE,
    ARM_LOOKS,
    BASE_COLOUR,
    BELOW,
    CATEGORY_LOOKS,
    CONTRAST_COLOURS,
    CONTROL_COLOUR,
    DIFFERENCE_COLOUR,
    DIVERGING,
    EXCESS,
    INDEX_LOOKS,
    INSTRUCT_COLOUR,
    NULL_COLOUR,
    OTHER_COLOURS,
    RFC_COLOUR,
    RSI_COLOUR,
    Look,
    arm_looks,
    category_looks,
)
from rolecircuits.runs.files import prepare_folder, replaced_file, write_csv

matplotlib.use("Agg")
# a matplotlibrc of the user (LaTeX, other fonts) would change the figures or end them
matplotlib.rcdefaults()
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)


UNITS = {
    "normalised": "normalised entropy",
    "sinkfree": "sink-free entropy",
    "raw": "raw entropy (nats)",
}
DPI = 130
MARKED_PAD = 18  # points between a panel and its title where `mark_layers` draws between them
LEFT, RIGHT, MIN_WIDTH = 0.9, 0.2, 6.5  # inches
TITLE_POINTS, TEXT_POINTS, CAPTION_POINTS = 11, 9, 8
LOOK = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titley": 1.0,  # else every panel's labels are measured once more, to place its title
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "role-conditioning",
    "text.parse_math": False,
}
plt.rcParams.update(LOOK)
SAVE_OPTIONS = {
    "png": {"pil_kwargs": {"compress_level": 1}},
    "svg": {"metadata": {"Date": None}},
    "pdf": {"metadata": {"CreationDate": None}},
}


@dataclass(frozen=True)
class Grid:
    """Equal panels, sizes in inches.

    shape  (rows, columns)                     panel    (width, height) of one
    gap    (between columns, between rows)     heading  lines of the titles of the panels
    right, left  margins
    """

    shape: tuple
    panel: tuple
    gap: tuple = (0.9, 0.6)
    heading: int = 1
    right: float = RIGHT
    left: float = LEFT


def save_figure(figure, path):
    """Write a figure under its name only when it is whole, and close it; format: the suffix."""
    buffer, suffix = io.BytesIO(), path.suffix[1:]
    figure.savefig(buffer, format=suffix, dpi=DPI, **SAVE_OPTIONS[suffix])
    plt.close(figure)
    with replaced_file(path, "wb") as file:
        file.write(buffer.getvalue())


def save_drawing(output_dir, name, drawing, file_format="png", facts=None):
    """Write NAME.<file_format> and data/NAME.csv of a drawing (figure, rows): the figure's path.

    facts  {column: value} that say what every row of the CSV is of
    """
    folder, (figure, rows) = prepare_folder(output_dir), drawing
    path = Path(folder, f"{name}.{file_format}")
    save_figure(figure, path)
    write_csv(folder / "data" / f"{name}.csv", rows, facts=facts)
    return path


def open_panels(grid: Grid, texts, handles=(), **options):
    """(figure, axes [row, column]): panels under a title, a subtitle and a legend, above a caption.

    texts    (title, subtitle, caption)
    handles  legend entries, set above the panels so that they cover no data
    options  of Figure.subplots (sharex, sharey)

    Margins are computed from the lines of text: long model names wrap instead of being clipped, and
    the layout costs nothing, where constrained layout draws every figure twice.
    """
    (rows, columns), (wide, high), gap = grid.shape, grid.panel, grid.gap
    left, right = grid.left, grid.right
    wide = max(wide, (MIN_WIDTH - left - right - (columns - 1) * gap[0]) / columns)
    width = left + columns * wide + (columns - 1) * gap[0] + right
    title = wrap_text(texts[0], width - 0.2, TITLE_POINTS)
    subtitle = wrap_text(texts[1], width - 0.2, TEXT_POINTS)
    caption = wrap_text(texts[2], width - 0.2, CAPTION_POINTS, em=0.55)
    longest = max((len(handle.get_label()) for handle in handles), default=0)
    per_row = max(1, int((width - 0.2) / (0.55 + 0.062 * longest)))
    heights = _text_height(title, TITLE_POINTS), _text_height(subtitle, TEXT_POINTS)
    legend_top = 0.1 + sum(heights)
    top = legend_top + 0.26 * -(-len(handles) // per_row) + 0.12 + 0.2 * grid.heading
    bottom = 0.5 + _text_height(caption, CAPTION_POINTS)
    height = top + rows * high + (rows - 1) * gap[1] + bottom
    figure = plt.figure(figsize=(width, height), layout="none")
    x = 0.1 / width
    bold = {"fontsize": TITLE_POINTS, "weight": "bold", "color": "black"}
    figure.text(x, 1 - 0.1 / height, title, va="top", **bold)
    plain = {"fontsize": TEXT_POINTS, "weight": "normal", "color": "black"}
    figure.text(x, 1 - (0.1 + heights[0]) / height, subtitle, va="top", **plain)
    small = {"fontsize": CAPTION_POINTS, "color": "#444444"}
    figure.text(x, 0.06 / height, caption, va="bottom", **small)
    if handles:
        place = {"loc": "upper left", "bbox_to_anchor": (x, 1 - legend_top / height)}
        figure.legend(handles=list(handles), ncols=per_row, borderpad=0, borderaxespad=0.2, **place)
    margins = {"left": left / width, "right": 1 - right / width}
    margins |= {"top": 1 - top / height, "bottom": bottom / height}
    margins |= {"wspace": gap[0] / wide, "hspace": gap[1] / high}
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw=margins, **options)
    ticks = {"nbins": max(3, round(2 * high)), "steps": [1, 2, 2.5, 5, 10]}
    for place in axes.flat:
        place.yaxis.set_major_locator(MaxNLocator(**ticks))
    return figure, axes


def wrap_text(text, inches, points, em=0.64):
    """`text` broken into lines that fit, words without a space included.

    em  width of a character: 0.55 for prose, 0.64 for the digits and capitals of model names
    """
    return textwrap.fill(text, max(8, int(inches * 72 / (points * em))), break_on_hyphens=False)


def _text_height(text, points):
    return (text.count("\n") + 1) * points * 1.35 / 72 if text else 0.0


def series_handle(colour, marker, label, linewidth=1.2):
    """Legend entry of a line that `draw_series` draws."""
    look = {"markersize": 4, "linewidth": linewidth, "label": label}
    return Line2D([], [], color=colour, marker=marker, **look)


def category_handles(looks, names):
    """Legend entries of categories: colour, marker and name."""
    return [series_handle(*looks[name]) for name in names]


def number_axis(axis, n, label):
    """Label an axis that counts layers or heads 0 to n - 1, with at most ten whole numbers."""
    axis.axes.set(**{f"{axis.axis_name}lim": (-0.5, n - 0.5)})
    axis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axis.set_label_text(label)


def add_colour_bar(figure, axes, mappable, label):
    """A colour bar right of the last panel, in the margin Grid.right; axes [row, column]."""
    inch = 1 / figure.get_figwidth()
    first, last = axes[0, -1].get_position(), axes[-1, -1].get_position()
    place = figure.add_axes((last.x1 + 0.15 * inch, last.y0, 0.14 * inch, first.y1 - last.y0))
    place.grid(False)
    return figure.colorbar(mappable, cax=place, label=label)


def signed_root(limit):
    """Colours from -limit to limit that follow the square root on both sides of 0."""

    def root(x):
        return np.sign(x) * np.sqrt(np.abs(x))

    return FuncNorm((root, lambda x: np.sign(x) * np.square(x)), -limit, limit)


def draw_series(axes, estimated, colour, marker="o", slot=0.0, alpha=0.18):
    """A line over layers with its band; one layer alone becomes a point with a bar.

    estimated  (mean, low, high), each [layer]
    slot       place among the series of the panel: moves the point of a single layer aside
    """
    mean, low, high = estimated
    alone = len(mean) == 1
    layers = np.arange(len(mean)) + (0.12 * slot if alone else 0.0)
    look = {"markersize": 3.2, "linewidth": 1.2, "markevery": -(-len(mean) // 40)}
    axes.plot(layers, mean, color=colour, marker=marker, **look)
    if alone:
        axes.vlines(layers, low, high, color=colour)
    else:
        axes.fill_between(layers, low, high, color=colour, alpha=alpha, linewidth=0)


def draw_null(axes, null, colour):
    """The length null [layer] as a dashed line; across the panel where there is one layer."""
    layers = np.arange(len(null)) if len(null) > 1 else np.array([-0.5, 0.5])
    axes.plot(layers, np.resize(null, len(layers)), color=colour, linestyle="--", linewidth=1)


def draw_zero(axes):
    """The line at 0 that a difference or an index is read against."""
    axes.axhline(0, color="black", linewidth=0.7, zorder=1)


def limit_to_points(panels, drawn, whole=(-np.inf, np.inf), axis="y"):
    """One axis for these panels, from their points and not from their widest bands.

    drawn    [(estimate, low, high), ...] of all panels, arrays; without a band low and high are NaN
    whole    what the axis never leaves

    Every point is inside, and so is a band of usual (median) width.
    """
    points, low, high = (
        np.concatenate([np.ravel(np.broadcast_to(m[i], np.shape(m[0]))) for m in drawn])
        for i in range(3)
    )
    bands, points = np.isfinite(high - low), points[np.isfinite(points)]
    if not len(points):
        return
    low, high = low[bands], high[bands]
    least, most = points.min(), points.max()
    reach = max(0.5 * (most - least), np.median(high - low)) if bands.any() else 0.0
    least = max(least - reach, min(least, low.min(initial=np.inf)))
    most = min(most + reach, max(most, high.max(initial=-np.inf)))
    spare = 0.05 * (most - least) or 0.05 * abs(most) or 1.0
    for axes in panels:
        axes.set(**{f"{axis}lim": (max(least - spare, whole[0]), min(most + spare, whole[1]))})


def draw_points(axes, values, look, slot=0.0):
    """Every row's value in every layer, for rows too few for an interval: values [row, layer]."""
    n, (colour, marker, *_) = values.shape[1], look
    layers = np.arange(n) + (0.12 * slot if n == 1 else 0.0)
    for own in values:
        axes.plot(layers, own, marker, color=colour, markersize=2, alpha=0.45, linewidth=0)


def mark_layers(axes, chosen, colour, marker, slot=0):
    """A small marker above the panel for every chosen layer, one line a slot; it covers no data."""
    layers = np.flatnonzero(chosen)
    if not len(layers):
        return
    look = {"s": 9, "color": colour, "marker": marker, "linewidths": 0, "clip_on": False}
    height = np.full(len(layers), 1.025 + 0.035 * slot)
    axes.scatter(layers, height, transform=axes.get_xaxis_transform(), **look)
