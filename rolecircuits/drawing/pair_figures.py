"""RFC and RSI of two runs and of their difference, layer by layer, less their length null.

Every panel of a figure has the same axis. Above 0 self-referent is the more focused (of contrasts
the side named first); a difference above 0 says that it gains focus from base to instruct, and not
that it is the more focused in either.
"""

from rolecircuits.drawing import style
from rolecircuits.drawing.study import CUT_NOTE, ZERO, excludes, less_null
from rolecircuits.inputs.arguments import ALPHA
from rolecircuits.stats.indices import INDICES, KIND_NAMES, KINDS
from rolecircuits.stats.resampling import N_RESAMPLES
from rolecircuits.stats.run_pairs import P_VALUES, SIDES

# file name: what is drawn of each kind of value, a column each
FIGURES = {"rfc_rsi_comparison": SIDES, "rfc_rsi_differences": ("diff",)}
LOOKS = {
    "base": style.Look(style.BASE_COLOUR, "o", "base"),
    "instruct": style.Look(style.INSTRUCT_COLOUR, "s", "instruct"),
    "diff": style.Look(style.DIFFERENCE_COLOUR, "D", "instruct - base"),
}
CONTRASTS = "contrasts_comparison"
ENDS = ("estimate", "low", "high")
PARTS = (*ENDS, "null", *P_VALUES)


def draw_pair(name, estimates, summary):
    """(Figure, rows) of one of FIGURES: RFC (top) and RSI (bottom) per layer, a column a kind.

    estimates  {kind: {index: {run: estimate}}}, or of CONTRASTS {contrast: {run: estimate}}
    summary    as in comparison_summary.json
    """
    if name == CONTRASTS:
        return draw_contrasts(estimates, summary)
    shown, n_layers = FIGURES[name], summary["n_layers"]
    handles = [style.series_handle(*LOOKS[run], linewidth=1.5) for run in shown]
    panel = (max(3.4, min(5.0, 2.2 + 0.04 * n_layers)), 2.3)
    grid = style.Grid((2, len(KINDS)), panel, gap=(0.45, 0.7), heading=2)
    figure, panels = style.open_panels(grid, write_texts(summary, shown), handles, sharey=True)
    drawn = [ZERO]
    for index, line in zip(INDICES, panels, strict=True):
        bottom = index == INDICES[-1]
        for kind, axes in zip(KINDS, line, strict=True):
            style.draw_zero(axes)
            axes.set_title(f"{index.upper()}, {KIND_NAMES[kind]}", pad=style.MARKED_PAD)
            style.number_axis(axes.xaxis, n_layers, "layer" if bottom else "")
            for slot, run in enumerate(shown):
                estimate = estimates[kind][index][run]
                place = slot, (2 * slot + 1 - len(shown)) / 3
                drawn.append(draw_side(axes, less_null(estimate), estimate["q"], run, place))
            if summary["differences"][kind][index]["mean"] is None:
                axes.text(0.5, 0.7, "undefined", transform=axes.transAxes, ha="center")
        what = f"{index.upper()}, instruct - base" if "diff" in shown else index.upper()
        line[0].set_ylabel(f"{what}\nless its length null")
    style.limit_to_points(panels.flat, drawn)
    rows = [
        {"kind": kind, "side": run, "index": index, "layer": layer}
        | {part: estimate[part][layer] for part in PARTS}
        | {f"less_null_{part}": values[layer] for part, values in zip(ENDS, less, strict=True)}
        for kind in KINDS
        for run in shown
        for index in INDICES
        for estimate in [estimates[kind][index][run]]
        for less in [less_null(estimate)]
        for layer in range(n_layers)
    ]
    return figure, rows


def draw_side(axes, measured, q, run, place):
    """One run, or the difference, in one panel; returns `measured` (estimate, low, high).

    q      [layer] of Benjamini-Hochberg     place  (line of the marks above, shift of one layer)
    """
    look, (slot, aside) = LOOKS[run], place
    style.draw_series(axes, measured, look.colour, look.marker, aside, alpha=0.2)
    marked = (q < ALPHA) & excludes(*measured[1:])
    style.mark_layers(axes, marked, look.colour, look.marker, slot)
    return measured


def draw_contrasts(compared, summary):
    """(Figure, rows): every contrast down; both runs left, instruct - base right."""
    n_layers, columns = summary["n_layers"], (SIDES, ("diff",))
    handles = [style.series_handle(*LOOKS[run], linewidth=1.5) for run in LOOKS]
    panel = (max(3.6, min(6.0, 2.4 + 0.04 * n_layers)), 2.0)
    grid = style.Grid((len(compared), 2), panel, gap=(0.9, 0.75), heading=2)
    texts = write_texts(summary, SIDES, compared)
    figure, panels = style.open_panels(grid, texts, handles, sharey=True)
    drawn = [ZERO]
    for row, (line, (name, sides)) in enumerate(zip(panels, compared.items(), strict=True)):
        bottom = row == len(panels) - 1
        for axes, shown in zip(line, columns, strict=True):
            style.draw_zero(axes)
            what = f"{name}, instruct - base" if shown == ("diff",) else name
            axes.set_title(style.wrap_text(what, panel[0], 10), pad=style.MARKED_PAD)
            style.number_axis(axes.xaxis, n_layers, "layer" if bottom else "")
            for slot, run in enumerate(shown):
                measured = tuple(sides[run][part] for part in ENDS)
                drawn.append(draw_side(axes, measured, sides[run]["q"], run, (slot, slot - 0.5)))
        line[0].set_ylabel("difference in focus")
    style.limit_to_points(panels.flat, drawn)
    return figure, [
        {"contrast": name, "side": run, "layer": layer}
        | {part: sides[run][part][layer] for part in (*ENDS, *P_VALUES)}
        for name, sides in compared.items()
        for run in sides
        for layer in range(n_layers)
    ]


def write_texts(summary, shown, contrasts=()):
    """(title, subtitle, caption): what was compared, formats and n, how the intervals are made."""
    difference = shown == ("diff",)
    title = "Contrasts of focus (normalised entropy) by layer"
    if not contrasts:
        title = "RFC and RSI by layer, base and instruct"
        title = "Difference of RFC and RSI by layer" if difference else title
    n = summary["prompts_compared"]
    size = f"{next(iter(n.values()))} prompts per category"
    if len(set(n.values())) > 1:
        size = ", ".join(f"{k} {name}" for name, k in n.items()) + " prompts"
    labels = "; ".join(f"{run}: {summary[run]['label']}" for run in SIDES)
    left_out = "contrast_intervals_left_out" if contrasts else "intervals_left_out"
    reasons, n_tested = summary.get(left_out, []), len(contrasts or INDICES)
    caption = [f"{reason}." for reason in reasons]
    caption.append(
        "Difference in focus: entropy of the second less entropy of the first; above 0 what is "
        "named first is the more focused. Instruct - base above 0: it gains focus."
        if contrasts
        else "Less the length null, the same index if attention were uniform over the visible keys "
        "(not 0 in raw alone). Above 0: self-referent "
        + ("gains focus from base to instruct." if difference else "is the more focused.")
    )
    if len(reasons) < n_tested:
        made = f"{N_RESAMPLES:,} resamples, the same in both runs"
        unit = summary["bootstrap"]["unit"]
        caption.insert(0, f"95 % bootstrap-t intervals over {unit} ({made}).")
        untested = " (raw differences are not tested)" if difference else ""
        marked = f"layers that pass Benjamini-Hochberg at {ALPHA}{untested}"
        caption.append(f"Above the panels: {marked}, and whose interval excludes 0.")
    caption.append(CUT_NOTE)
    subtitle = f"{labels}; n = {size}, in both runs"
    return f"{title} ({summary['pair']})", subtitle, " ".join(caption)
