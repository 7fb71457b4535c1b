"""RFC and RSI of two runs and of their difference, layer by layer."""

from rolecircuits.stats.indices import INDICES
from rolecircuits.stats.resampling import N_RESAMPLES
from rolecircuits.stats.role_tests import ALPHA
from rolecircuits.stats.run_pairs import P_VALUES

FIGURE_KINDS = {
    "rfc_rsi_comparison": ("normalised", "raw"),
    "rfc_rsi_differences": ("normalised", "sinkfree", "raw"),
}
UNITS = {
    "normalised": "normalised entropy",
    "sinkfree": "normalised without key 0",
    "raw": "raw entropy (nats)",
}


def list_points(estimates, kind, run):
    """The points of one line of a figure, RFC then RSI, as rows for its CSV."""
    parts = {"value": "value", "ci_low": "low", "ci_high": "high", "length_null": "null"}
    parts |= {test: test for test in P_VALUES}
    return [
        {"kind": kind, "run": run, "index": index, "layer": layer}
        | {column: estimates[index][run][part][layer] for column, part in parts.items()}
        for index in INDICES
        for layer in range(len(estimates[index][run]["value"]))
    ]


def draw_indices(estimates, summary, kinds, shown):
    """Figure of RFC (top) and RSI (bottom) per layer, one column a kind, `raw` last; `shown`: the estimates drawn."""
    from rolecircuits.drawing.style import (
        MARKED_PAD,
        PAIR_LOOKS,
        Line2D,
        mark_layers,
        number_axis,
        open_panels,
    )

    looks = {run: PAIR_LOOKS[run] for run in shown}
    handles = [Line2D([], [], markersize=4, label=name, **look) for name, look in looks.values()]
    handles += [
        Line2D([], [], color=x["color"], linestyle="--", label=f"length null, {n}")
        for n, x in looks.values()
    ]
    texts = _compose_texts(summary, shown)
    size = (max(3.6, min(6.0, 2.4 + 0.04 * summary["n_layers"])), 2.4)
    figure, panels = open_panels((2, len(kinds)), size, *texts, handles, gap=(0.7, 0.65), heading=2)
    for index, row in zip(INDICES, panels, strict=True):
        for kind, axes in zip(kinds, row, strict=True):
            axes.axhline(0, color="black", linewidth=0.7)
            axes.set_title(f"{index.upper()}, {UNITS[kind]}", pad=MARKED_PAD)
            number_axis(axes.xaxis, summary["n_layers"], "layer" if index == INDICES[-1] else "")
            axes.tick_params(labelbottom=index == INDICES[-1])
            axes.locator_params(axis="y", nbins=6)
            for slot, run in enumerate(shown):
                shift = 0.04 * (2 * slot + 1 - len(shown))
                estimate, look = estimates[kind][index][run], looks[run][1]
                _draw_line(axes, estimate, look, kind == "raw", shift)
                mark_layers(
                    axes, estimate["q"] < ALPHA, look["color"], look.get("marker", "o"), slot
                )
            if summary["differences"][kind][index]["mean"] is None:
                axes.text(0.5, 0.7, "undefined", transform=axes.transAxes, ha="center")
        row[0].set_ylabel(f"{index.upper()}, instruct - base" if "diff" in shown else index.upper())
    return figure


def _draw_line(axes, estimate, look, with_null, shift):
    """Value over layers with its interval, a band or, for a single layer, a bar moved aside by `shift`; length null dashed."""
    import numpy as np

    value, null = estimate["value"], estimate["null"]
    alone = len(value) == 1
    layers = np.arange(len(value)) + (shift if alone else 0)
    axes.plot(layers, value, linewidth=1.2, markersize=3.2, markevery=-(-len(value) // 40), **look)
    if alone:
        axes.vlines(layers, estimate["low"], estimate["high"], color=look["color"])
    else:
        axes.fill_between(
            layers, estimate["low"], estimate["high"], color=look["color"], alpha=0.2, linewidth=0
        )
    if with_null:
        ends = (-0.5, 0.5) if alone else layers
        axes.plot(
            ends, np.resize(null, len(ends)), color=look["color"], linestyle="--", linewidth=1
        )


def _compose_texts(summary, shown):
    """(title, subtitle, caption) of a figure: what was compared, formats and n, how the intervals are made."""
    what = (
        "Difference of RFC and RSI by layer"
        if shown == ("diff",)
        else "RFC and RSI by layer, base and instruct"
    )
    n = summary["prompts_compared"]
    size = f"{n['neutral']} prompts per category"
    if len(set(n.values())) > 1:
        size = ", ".join(f"{k} {name}" for name, k in n.items()) + " prompts"
    subtitle = f"base: {summary['base']['label']}; instruct: {summary['instruct']['label']}; n = {size}, in both runs"
    caption = [
        "Dashed: length null, the same index if attention were uniform over the visible keys; 0 unless raw."
    ]
    caption = [f"{reason}." for reason in summary["intervals_left_out"]] + caption
    if len(summary["intervals_left_out"]) < len(INDICES):
        caption.insert(
            0,
            f"95 % bootstrap-t intervals over prompts ({N_RESAMPLES:,} resamples, the same in both runs).",
        )
        untested = " (raw differences are not tested)" if shown == ("diff",) else ""
        caption.append(
            f"Above the panels: layers that pass Benjamini-Hochberg at {ALPHA}{untested}."
        )
    return f"{what} ({summary['pair']})", subtitle, " ".join(caption)
