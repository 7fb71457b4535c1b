"""The profiles of several models along relative depth in one figure."""

import numpy as np

from rolecircuits.drawing.style import NULL_COLOUR, plt
from rolecircuits.inputs.errors import printable
from rolecircuits.stats.profiles import COLUMNS

MARKERS = "os^Dv<>PX*"


def plot_profiles(profiles, kind):
    """Figure: RFC and RSI difference of every model against relative depth.

    profiles  {model: as stats.profiles.read_profiles gives it, with intervals or without}
    kind      which RFC and RSI these are: normalised, sinkfree or original
    """
    figure, axes = plt.subplots(2, 1, figsize=(7.5, 6), sharex=True)
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.88, len(profiles)))
    for axis, column in zip(axes, COLUMNS, strict=True):
        axis.axhline(0, color=NULL_COLOUR, linewidth=0.8)
        for i, (name, profile) in enumerate(profiles.items()):
            depth = np.linspace(0, 1, len(profile["layer"]))
            look = {"marker": MARKERS[i % len(MARKERS)], "markersize": 3, "label": printable(name)}
            axis.plot(depth, profile[column], color=colours[i], **look)
            ends = [profile.get(f"{column}_ci_{end}") for end in ("low", "high")]
            if ends[0] is not None and ends[1] is not None:
                axis.fill_between(depth, *ends, color=colours[i], alpha=0.12, linewidth=0)
        limit_axis(axis, np.concatenate([profile[column] for profile in profiles.values()]))
        axis.set_ylabel(f"{column[:3].upper()} {kind}, instruct - base")
    axes[0].set_title(
        "change from base to instruct along depth (shaded: the intervals in each file)"
    )
    axes[1].set_xlabel("relative depth (0 first layer, 1 last layer)")
    axes[0].legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def limit_axis(axis, values):
    """Keep one layer far out (its neutral entropy is nearly 0) from flattening the others."""
    low, high = np.quantile(values, [0.02, 0.98])
    reach = high - low
    outside = int(((values < low - 1.5 * reach) | (values > high + 1.5 * reach)).sum())
    if outside:
        axis.set_ylim(low - 0.6 * reach, high + 0.6 * reach)
        text, place = f"{outside} points outside the frame", {"ha": "right", "va": "top"}
        axis.annotate(text, (0.99, 0.97), xycoords="axes fraction", fontsize=8, **place)
