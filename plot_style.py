"""One look for every figure: colours that hold for colour-blind readers, fonts that are always there, safe text.

Colours are Okabe and Ito's set (Color Universal Design, 2008); categories also differ in marker and line style.
"""

import io
import logging

import matplotlib

matplotlib.use("Agg")
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)

import matplotlib.pyplot as plt  # noqa: E402  (the backend is chosen first: there may be no display)

from output_manager import replaced_file  # noqa: E402

COLOURS = {"self_referent": "#D55E00", "confounder": "#0072B2", "neutral": "#009E73", "third_person": "#CC79A7"}
MARKERS = {"self_referent": "o", "confounder": "s", "neutral": "^", "third_person": "D"}
LINES = {"self_referent": "-", "confounder": "--", "neutral": "-.", "third_person": (0, (3, 1, 1, 1, 1, 1))}
NAMES = {
    "self_referent": "self-referent",
    "confounder": "confounder",
    "neutral": "neutral",
    "third_person": "third person",
}
RFC_COLOUR, RSI_COLOUR, NULL_COLOUR = "#332288", "#117733", "#666666"
DIVERGING = "RdBu_r"
DPI = 130

plt.rcParams.update(
    {
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "figure.constrained_layout.use": True,
        "svg.hashsalt": "role-conditioning",
        "text.parse_math": False,
    }
)


def save_figure(figure, path):
    """Write a figure under its final name only when it is whole, and close it. The format is the path's suffix."""
    buffer = io.BytesIO()
    suffix = path.suffix[1:]
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    figure.savefig(buffer, format=suffix, dpi=DPI, metadata=dates.get(suffix))
    plt.close(figure)
    with replaced_file(path, "wb") as file:
        file.write(buffer.getvalue())
