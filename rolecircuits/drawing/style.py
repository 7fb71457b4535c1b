"""One look for every figure: colours that hold for colour-blind readers, fonts that are always there, safe text.

Colours are Okabe and Ito's set (Color Universal Design, 2008); categories also differ in marker.
"""

import io
import logging
import textwrap

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from rolecircuits.runs.files import replaced_file

matplotlib.use("Agg")
matplotlib.rcdefaults()  # a matplotlibrc of the user (LaTeX, other fonts) would change the figures or end them
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
COLOURS = {
    "self_referent": "#D55E00",
    "confounder": "#0072B2",
    "neutral": "#009E73",
    "third_person": "#CC79A7",
}
MARKERS = {"self_referent": "o", "confounder": "s", "neutral": "^", "third_person": "D"}
NAMES = {
    "self_referent": "self-referent",
    "confounder": "confounder",
    "neutral": "neutral",
    "third_person": "third person",
}
RFC_COLOUR, RSI_COLOUR, NULL_COLOUR = "#332288", "#117733", "#666666"
PAIR_LOOKS = {
    "base": ("base", {"color": "#333333", "marker": "o"}),
    "instruct": ("instruct", {"color": "#E69F00", "marker": "s"}),
    "diff": ("instruct - base", {"color": RFC_COLOUR, "marker": "o"}),
}
DIVERGING = "RdBu_r"
DPI = 130
MARKED_PAD = 18
MIN_VIOLIN, NO_SPREAD = 5, 1e-6
LEFT, RIGHT, MIN_WIDTH = 0.9, 0.2, 6.5
TITLE_POINTS, TEXT_POINTS, CAPTION_POINTS = 11, 9, 8
LOOK = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
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


def save_figure(figure, path):
    """Write a figure under its final name only when it is whole, and close it. The format is the path's suffix."""
    buffer = io.BytesIO()
    suffix = path.suffix[1:]
    options = {
        "png": {"pil_kwargs": {"compress_level": 1}},
        "svg": {"metadata": {"Date": None}},
        "pdf": {"metadata": {"CreationDate": None}},
    }
    figure.savefig(buffer, format=suffix, dpi=DPI, **options[suffix])
    plt.close(figure)
    with replaced_file(path, "wb") as file:
        file.write(buffer.getvalue())


def open_panels(
    shape,
    panel,
    title,
    subtitle,
    caption,
    handles=(),
    gap=(0.9, 0.6),
    heading=1,
    right=RIGHT,
    **options,
):
    """(figure, axes [row, column]): equal panels under a title, a subtitle and a legend, above a caption; sizes in inches.

    shape    (rows, columns)      panel  (width, height) of one       gap  (between columns, between rows)
    handles  legend entries, set above the panels so that they cover no data
    heading  lines of the titles of the panels
    options  passed to Figure.subplots (sharex, sharey)

    Margins are computed from the lines of text: long model names wrap instead of being clipped, and the layout costs
    nothing, where constrained layout draws every figure twice.
    """
    (rows, columns), (wide, high) = shape, panel
    wide = max(wide, (MIN_WIDTH - LEFT - right - (columns - 1) * gap[0]) / columns)
    width = LEFT + columns * wide + (columns - 1) * gap[0] + right
    texts = [(title, TITLE_POINTS, "bold", "black"), (subtitle, TEXT_POINTS, "normal", "black")]
    texts = [
        (wrap_text(text, width - 0.2, points), points, weight, colour)
        for text, points, weight, colour in texts
    ]
    caption = wrap_text(caption, width - 0.2, CAPTION_POINTS, em=0.55)
    longest = max((len(handle.get_label()) for handle in handles), default=0)
    per_row = max(1, int((width - 0.2) / (0.55 + 0.062 * longest)))
    top = 0.1 + sum(_text_height(text, points) for text, points, *_ in texts)
    legend_top, top = top, top + 0.26 * -(-len(handles) // per_row) + 0.12 + 0.2 * heading
    bottom = 0.5 + _text_height(caption, CAPTION_POINTS)
    height = top + rows * high + (rows - 1) * gap[1] + bottom
    figure = plt.figure(figsize=(width, height), layout="none")
    y = 0.1
    for text, points, weight, colour in texts:
        figure.text(
            0.1 / width,
            1 - y / height,
            text,
            fontsize=points,
            weight=weight,
            color=colour,
            va="top",
        )
        y += _text_height(text, points)
    figure.text(
        0.1 / width, 0.06 / height, caption, fontsize=CAPTION_POINTS, color="#444444", va="bottom"
    )
    if handles:
        place = {"loc": "upper left", "bbox_to_anchor": (0.1 / width, 1 - legend_top / height)}
        figure.legend(handles=list(handles), ncols=per_row, borderpad=0, borderaxespad=0.2, **place)
    grid = {
        "left": LEFT / width,
        "right": 1 - right / width,
        "top": 1 - top / height,
        "bottom": bottom / height,
    }
    grid |= {"wspace": gap[0] / wide, "hspace": gap[1] / high}
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw=grid, **options)
    for place in axes.flat:
        place.yaxis.set_major_locator(
            MaxNLocator(nbins=max(3, round(2 * high)), steps=[1, 2, 2.5, 5, 10])
        )
    return figure, axes


def wrap_text(text, inches, points, em=0.64):
    """`text` broken into lines that fit, words without a space included.

    em  width of a character: 0.55 for prose in DejaVu Sans, 0.64 for digits and capitals, which model names may consist of
    """
    return textwrap.fill(text, max(8, int(inches * 72 / (points * em))), break_on_hyphens=False)


def _text_height(text, points):
    return (text.count("\n") + 1) * points * 1.35 / 72 if text else 0.0


def category_handles(names):
    """Legend entries of categories: colour, marker and name."""
    return [series_handle(COLOURS[name], MARKERS[name], NAMES[name]) for name in names]


def series_handle(colour, marker, label):
    """Legend entry of a line that `draw_series` draws."""
    return Line2D([], [], color=colour, marker=marker, markersize=4, linewidth=1.2, label=label)


def number_axis(axis, n, label):
    """Label an axis that counts layers or heads 0 to n - 1; ticks are whole numbers, thinned where there are many."""
    axis.axes.set(**{f"{axis.axis_name}lim": (-0.5, n - 0.5)})
    axis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axis.set_label_text(label)


def add_colour_bar(figure, axes, mappable, label):
    """A colour bar right of the last panel in the margin that `open_panels(right=...)` left; axes [row, column]."""
    inch = 1 / figure.get_figwidth()
    first, last = axes[0, -1].get_position(), axes[-1, -1].get_position()
    place = figure.add_axes((last.x1 + 0.15 * inch, last.y0, 0.14 * inch, first.y1 - last.y0))
    place.grid(False)
    return figure.colorbar(mappable, cax=place, label=label)


def draw_series(axes, estimated, colour, marker="o", slot=0.0):
    """A line over layers with its band; one layer alone becomes a point with a bar, moved aside by `slot`."""
    mean, low, high = estimated
    alone = len(mean) == 1
    layers = np.arange(len(mean)) + (0.12 * slot if alone else 0.0)
    axes.plot(
        layers,
        mean,
        color=colour,
        marker=marker,
        markersize=3.2,
        linewidth=1.2,
        markevery=-(-len(mean) // 40),
    )
    if alone:
        axes.vlines(layers, low, high, color=colour)
    else:
        axes.fill_between(layers, low, high, color=colour, alpha=0.18, linewidth=0)


def draw_null(axes, null, colour):
    """The length null [layer] as a dashed line; across the panel where there is one layer."""
    layers = np.arange(len(null)) if len(null) > 1 else np.array([-0.5, 0.5])
    axes.plot(layers, np.resize(null, len(layers)), color=colour, linestyle="--", linewidth=1)


def draw_zero(axes):
    """The line at 0 that a difference or an index is read against."""
    axes.axhline(0, color="black", linewidth=0.7, zorder=1)


def limit_to_mass(axes):
    """A y axis of attention mass ends at 0 and, where the data reach it, at 1: an interval of skewed values may go past both."""
    axes.set_ylim(0, min(axes.get_ylim()[1], 1.02))


def label_cells(axis, n, label):
    """Ticks in the middle of the cells of a heatmap, a dozen at most."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, n) if n <= 12 * step)
    axis.set_ticks(np.arange(0, n, step) + 0.5, np.arange(0, n, step))
    axis.set_label_text(label)


def mark_cells(axes, chosen):
    """A dot in the middle of every chosen cell of a heatmap [row, column]."""
    row, column = np.nonzero(chosen)
    axes.scatter(column + 0.5, row + 0.5, s=5, color="black", linewidths=0, zorder=3)


def mark_layers(axes, chosen, colour, marker, slot=0):
    """A small marker just above the panel for every chosen layer, one line a slot; it covers no data."""
    layers = np.flatnonzero(chosen)
    place = axes.get_xaxis_transform()
    at = np.full(len(layers), 1.025 + 0.035 * slot)
    axes.scatter(
        layers, at, s=9, color=colour, marker=marker, linewidths=0, transform=place, clip_on=False
    )


def draw_heads(axes, measured):
    """One marker a head and category with its interval, categories side by side; measured {name: (mean, low, high)}."""
    for slot, (name, (mean, low, high)) in enumerate(measured.items()):
        heads = np.arange(len(mean)) + 0.18 * (slot - (len(measured) - 1) / 2)
        size = 3.5 if len(mean) <= 24 else 1.8
        axes.plot(
            heads,
            mean,
            linestyle="none",
            marker=MARKERS[name],
            markersize=size,
            color=COLOURS[name],
        )
        axes.vlines(
            heads,
            low,
            high,
            color=COLOURS[name],
            linewidth=0.8,
            alpha=0.6 if len(mean) <= 24 else 0.35,
        )


def area_handle(value, area):
    """Legend entry of the size of a scatter marker: `area` in square points, as `scatter(s=...)` takes it."""
    look = {
        "linestyle": "none",
        "marker": "o",
        "markerfacecolor": "white",
        "markeredgecolor": "black",
    }
    return Line2D(
        [],
        [],
        markersize=np.sqrt(area),
        markeredgewidth=0.4,
        label=f"|difference| = {value:.3g}",
        **look,
    )


def draw_violins(axes, groups):
    """Points of every category, and a violin where there are enough of them; groups {category: [prompt]}."""
    groups = {name: points[np.isfinite(points)] for name, points in groups.items()}
    names = [
        name
        for name, points in groups.items()
        if len(points) >= MIN_VIOLIN and np.ptp(points) > NO_SPREAD
    ]
    if names:
        import seaborn  # takes longer than a figure, and only this one needs it

        shape = {
            "inner": None,
            "cut": 0,
            "density_norm": "width",
            "linewidth": 0.6,
            "color": "white",
        }
        seaborn.violinplot(
            {name: groups[name] for name in names}, order=list(groups), ax=axes, **shape
        )
        for violin, name in zip(axes.collections, names, strict=True):
            violin.set(facecolor=COLOURS[name], alpha=0.3)
    jitter = np.random.default_rng(0)
    for slot, (name, points) in enumerate(groups.items()):
        x = slot + jitter.uniform(-0.12, 0.12, len(points))
        axes.plot(
            x,
            points,
            linestyle="none",
            marker=MARKERS[name],
            markersize=3,
            color=COLOURS[name],
            alpha=0.9,
        )
    axes.set(xticks=[], xlim=(-0.6, len(groups) - 0.4), xlabel="", ylabel="")
