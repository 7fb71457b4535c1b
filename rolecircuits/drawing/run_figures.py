"""The figures of a run by file name: numbers in, (matplotlib Figure, rows of its CSV) out.

Entropy is normalised (0 one-hot, 1 uniform over the visible keys), sink-free or raw (nats), as
stats.indices defines it. "a - b" is the difference in focus, mean entropy of b less that of a:
above 0, a is the more focused, as RFC and RSI are above 0 if self-referent is. Intervals are 95 %
bootstrap-t intervals over the units of the set. Heads and layers that pass Benjamini-Hochberg at
0.05 among all that are tested together are marked.

    study = study_run(load_run("results_activation_analysis/latest_run"))
    for name in FIGURES:
        figure, rows = draw_figure(name, study)
"""

from rolecircuits.drawing.head_figures import (
    draw_distributions,
    draw_heatmaps,
    draw_slot_attention,
    draw_token_attention,
    draw_top_heads,
)
from rolecircuits.drawing.layer_figures import (
    draw_confounder_controls,
    draw_difference_bars,
    draw_edge_attention,
    draw_indices,
    draw_layer_lines,
)
from rolecircuits.drawing.multiverse_figure import draw_run
from rolecircuits.drawing.study import Study, draw_reason
from rolecircuits.inputs.categories import REQUIRED

CONTROLLED = ("self_referent", "confounder")
# file name: (function, categories that it needs, title)
FIGURES = {
    "visualization_1_layer_attention_lines": (
        draw_layer_lines, (), "Attention entropy by layer, and differences in focus"),
    "visualization_2_heatmaps": (draw_heatmaps, (), "Differences in focus by layer and head"),
    "visualization_3_token_attention": (
        draw_token_attention, (), "What the final query attends to, less uniform attention"),
    "visualization_4_distributions": (
        draw_distributions, (), "Heads chosen on one half of the prompts, measured on the other"),
    "visualization_5_delta_bar_summary": (
        draw_difference_bars, (), "Differences in focus by layer"),
    "visualization_6_top_k_head_ranking": (
        draw_top_heads, (), "The strongest heads, chosen and measured on the same prompts"),
    "visualization_7_cross_token_control": (
        draw_edge_attention, (),
        "Attention of the final query on the first and the last tokens of the text"),
    "visualization_8_delta_h_per_layer": (
        draw_confounder_controls, CONTROLLED,
        "Self-referent - confounder beside its control, in every kind of entropy"),
    "visualization_9_role_focus_separation": (
        draw_indices, REQUIRED, "RFC and RSI by layer, less their length null"),
    "visualization_10_slot_attention": (
        draw_slot_attention, (), "Attention of the final query on the person"),
    "visualization_11_multiverse": (
        draw_run, REQUIRED, "Every choice of the analysis"),
}  # fmt: skip


SLOT_FIGURE = "visualization_10_slot_attention"
COSTS = {  # how long a figure takes, where it is longer than the others
    "visualization_11_multiverse": 4,
    "visualization_9_role_focus_separation": 3,
    "visualization_1_layer_attention_lines": 2,
    "visualization_8_delta_h_per_layer": 2,
}


def names_for(run):
    """The figures that a run gets: all, the one of the slot only where its prompts have slots."""
    return [name for name in FIGURES if name != SLOT_FIGURE or run.has_slots]


def draw_figure(name, study: Study):
    """(Figure, rows) of one of FIGURES, or a figure that says which categories the run lacks."""
    function, needs, title = FIGURES[name]
    missing = [study.looks[category].label for category in needs if category not in study.names]
    if missing:
        reason = f"This figure needs {' and '.join(missing)} prompts; this run has none."
        return draw_reason(study, title, reason)
    return function(study, title)
