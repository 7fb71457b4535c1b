"""RFC and RSI of two runs and of their difference, layer by layer."""

from rolecircuits.drawing import style
from rolecircuits.inputs.arguments import ALPHA
from rolecircuits.stats.indices import INDICES
from rolecircuits.stats.resampling import N_RESAMPLES
from rolecircuits.stats.run_pairs import P_VALUES, SIDES

# file name: (kinds of value, a column each, raw last; what is drawn of each)
FIGURES = {
    "rfc_rsi_comparison": (("normalised", "raw"), SIDES),
    "rfc_rsi_differences": (("normalised", "sinkfree", "raw"), ("diff",)),
}
UNITS = {
    "normalised": "normalised entropy",
    "sinkfree": "normalised without key 0",
    "raw": "raw entropy (nats)",
}
LOOKS = {
    "base": ("#333333", "o", "base"),
    "instruct": ("#E69F00", "s", "instruct"),
    "diff": (style.RFC_COLOUR, "o", "instruct - base"),
}
CONTRASTS = "contrasts_comparison"
PARTS = ("estimate", "low", "high", "null", *P_VALUES)


def draw_pair(name, estimates, summary):
    """(Figure, rows) of one of FIGURES: RFC (top) and RSI (bottom) per layer, a column a kind.

    estimates  {kind: {index: {run: estimate}}}, or of CONTRASTS {contrast: {run: estimate}}
    summary    as in comparison_summary.json
    """
    if name == CONTRASTS:
        return draw_contrasts(estimates, summary)
    (kinds, shown), n_layers = FIGURES[name], summary["n_layers"]
    handles = [style.series_handle(*LOOKS[run], linewidth=1.5) for run in shown]
    handles += [
        style.Line2D([], [], color=colour, linestyle="--", label=f"length null, {label}")
        for colour, _, label in (LOOKS[run] for run in shown)
    ]
    panel = (max(3.6, min(6.0, 2.4 + 0.04 * n_layers)), 2.4)
    grid = style.Grid((2, len(kinds)), panel, gap=(0.7, 0.65), heading=2)
    figure, panels = style.open_panels(grid, write_texts(summary, shown), handles)
    for index, line in zip(INDICES, panels, strict=True):
        bottom = index == INDICES[-1]
        for kind, axes in zip(kinds, line, strict=True):
            axes.axhline(0, color="black", linewidth=0.7)
            axes.set_title(f"{index.upper()}, {UNITS[kind]}", pad=style.MARKED_PAD)
            style.number_axis(axes.xaxis, n_layers, "layer" if bottom else "")
            axes.tick_params(labelbottom=bottom)
            axes.locator_params(axis="y", nbins=6)
            for slot, run in enumerate(shown):
                estimate, (colour, marker, _) = estimates[kind][index][run], LOOKS[run]
                measured = [estimate[part] for part in ("estimate", "low", "high")]
                aside = (2 * slot + 1 - len(shown)) / 3
                style.draw_series(axes, measured, colour, marker, aside, alpha=0.2)
                if kind == "raw":
                    style.draw_null(axes, estimate["null"], colour)
                style.mark_layers(axes, estimate["q"] < ALPHA, colour, marker, slot)
            if summary["differences"][kind][index]["mean"] is None:
                axes.text(0.5, 0.7, "undefined", transform=axes.transAxes, ha="center")
        line[0].set_ylabel(
            f"{index.upper()}, instruct - base" if "diff" in shown else index.upper()
        )
    return figure, [
        {"kind": kind, "run": run, "index": index, "layer": layer}
        | {part: estimates[kind][index][run][part][layer] for part in PARTS}
        for kind in kinds
        for run in shown
        for index in INDICES
        for layer in range(n_layers)
    ]


def draw_contrasts(compared, summary):
    """(Figure, rows): every contrast down; both runs left, instruct - base right."""
    n_layers, columns = summary["n_layers"], (SIDES, ("diff",))
    handles = [style.series_handle(*LOOKS[run], linewidth=1.5) for run in LOOKS]
    panel = (max(3.6, min(6.0, 2.4 + 0.04 * n_layers)), 2.0)
    grid = style.Grid((len(compared), 2), panel, gap=(0.9, 0.65), heading=2)
    texts = write_texts(summary, SIDES, of_contrasts=True)
    figure, panels = style.open_panels(grid, texts, handles)
    for row, (line, (name, sides)) in enumerate(zip(panels, compared.items(), strict=True)):
        bottom = row == len(panels) - 1
        for axes, shown in zip(line, columns, strict=True):
            style.draw_zero(axes)
            axes.set_title(
                f"{name}, instruct - base" if shown == ("diff",) else name, pad=style.MARKED_PAD
            )
            style.number_axis(axes.xaxis, n_layers, "layer" if bottom else "")
            axes.tick_params(labelbottom=bottom)
            for slot, run in enumerate(shown):
                estimate, (colour, marker, _) = sides[run], LOOKS[run]
                measured = [estimate[part] for part in ("estimate", "low", "high")]
                style.draw_series(axes, measured, colour, marker, slot - 0.5, alpha=0.2)
                style.mark_layers(axes, estimate["q"] < ALPHA, colour, marker, slot)
        line[0].set_ylabel("focus, first - second")
    parts = ("estimate", "low", "high", *P_VALUES)
    return figure, [
        {"contrast": name, "run": run, "layer": layer}
        | {part: sides[run][part][layer] for part in parts}
        for name, sides in compared.items()
        for run in sides
        for layer in range(n_layers)
    ]


def write_texts(summary, shown, of_contrasts=False):
    """(title, subtitle, caption): what was compared, formats and n, how the intervals are made."""
    difference = shown == ("diff",)
    title = "Contrasts of normalised entropy by layer"
    if not of_contrasts:
        title = "RFC and RSI by layer, base and instruct"
        title = "Difference of RFC and RSI by layer" if difference else title
    n = summary["prompts_compared"]
    size = f"{next(iter(n.values()))} prompts per category"
    if len(set(n.values())) > 1:
        size = ", ".join(f"{k} {name}" for name, k in n.items()) + " prompts"
    labels = "; ".join(f"{run}: {summary[run]['label']}" for run in SIDES)
    reasons = summary["intervals_left_out"]
    caption = [f"{reason}." for reason in reasons]
    if not of_contrasts:
        caption.append(
            "Dashed: length null, the same index if attention were uniform over the visible keys; "
            "0 unless raw."
        )
    if len(reasons) < len(INDICES):
        made = f"{N_RESAMPLES:,} resamples, the same in both runs"
        unit = summary["bootstrap"]["unit"]
        caption.insert(0, f"95 % bootstrap-t intervals over {unit} ({made}).")
        untested = " (raw differences are not tested)" if difference else ""
        marked = f"layers that pass Benjamini-Hochberg at {ALPHA}{untested}"
        caption.append(f"Above the panels: {marked}.")
    subtitle = f"{labels}; n = {size}, in both runs"
    return f"{title} ({summary['pair']})", subtitle, " ".join(caption)
