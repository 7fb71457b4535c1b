"""Figures of a documents run: numbers in, (matplotlib Figure, rows of its CSV) out.

    documents_by_turn    entropies and sink mass along conversations: a line a conversation, a
                         marker a turn in the colour of its role; below, layer by turn
    documents_by_layer   the same along layers: a line a document in the colour of its category;
                         below, document by layer

Entropies are normalised (0 one-hot, 1 uniform over the visible keys) and lower is more focused.
Arrays are those of documents.npz. In a CSV "all" stands where a row is a mean over that axis.
"""

import numpy as np

from rolecircuits.drawing import style
from rolecircuits.drawing.colours import ROLE_LOOKS, Look
from rolecircuits.drawing.style import Grid
from rolecircuits.inputs.categories import order_categories
from rolecircuits.inputs.errors import printable
from rolecircuits.runs.document_results import read_documents_run, run_columns, run_label
from rolecircuits.stats.document_stats import VALUES, turn_means
from rolecircuits.stats.moments import defined_mean

TITLES = {
    "normalised": "normalised entropy",
    "sinkfree": "sink-free entropy",
    "sink_mass": "attention on the sink",
}
NO_CATEGORY = Look("#444444", "o", "documents")
FOCUS = "The lower an entropy (the darker in the maps), the more focused."
ALL = "all"
MAX_NAMES = 30  # rows of a heat map that are named
IMAGE = {"aspect": "auto", "interpolation": "nearest", "cmap": "viridis"}


def draw_folder(folder):
    """`draw_documents` of a complete run whose files were compared with its manifest."""
    return draw_documents(*read_documents_run(folder))


def draw_documents(arrays, config):
    """{file name: (figure, rows)} of a documents run; the one of turns only if it has any."""
    label, named = run_label(config), run_columns(config)
    drawings = {"documents_by_layer": draw_by_layer(arrays, label)}
    if _turn_numbers(arrays).max() > 0:
        drawings = {"documents_by_turn": draw_by_turn(arrays, label)} | drawings
    return {
        name: (figure, [named | row for row in rows]) for name, (figure, rows) in drawings.items()
    }


def _turn_numbers(arrays):
    """Which turn of its document every turn is: [turn], from 0."""
    owner = arrays["turn_document"]
    return np.arange(len(owner)) - np.searchsorted(owner, owner)


def draw_by_turn(arrays, label):
    """Conversations turn by turn, above the mean over conversations by layer and turn."""
    number, owner, role = _turn_numbers(arrays), arrays["turn_document"], arrays["turn_role"]
    talks = np.unique(owner[number > 0])
    chosen, n_turns = np.isin(owner, talks), int(number.max()) + 1
    roles = [name for name in ROLE_LOOKS if (role[chosen] == name).any()]
    handles = style.category_handles(ROLE_LOOKS, roles)
    per_turn = [int((number[chosen] == turn).sum()) for turn in range(n_turns)]
    caption = (
        f"A thin line a conversation, mean over layers and heads. {FOCUS} Maps and thick lines (by "
        f"role): means over the conversations that have the turn ({per_turn[0]} the first, "
        f"{per_turn[-1]} the last). Later turns see more keys, so values change along a "
        "conversation whatever is said; compare turns of one role."
    )
    subtitle = f"{label}; {len(talks)} conversations"
    texts = ("Conversations, turn by turn", subtitle, caption)
    figure, axes = _open(arrays, texts, handles, n_turns)
    rows, maps = [], {}
    alpha = float(np.clip(6 / len(talks), 0.08, 0.5))
    for place, kind in zip(axes[0], VALUES, strict=True):
        values = turn_means(arrays, kind)
        for document in talks:
            own = owner == document
            place.plot(number[own], values[own], color="#888888", linewidth=0.8, alpha=alpha)
        for name in roles:
            own, look = chosen & (role == name), ROLE_LOOKS[name]
            marks = {"s": 12, "marker": look.marker, "alpha": alpha, "linewidths": 0}
            place.scatter(number[own], values[own], color=look.colour, zorder=3, **marks)
            turns = np.unique(number[own])
            means = [defined_mean(values[own & (number == turn)]) for turn in turns]
            line = {"linewidth": 2, "zorder": 4, "marker": look.marker, "markersize": 3.5}
            place.plot(turns, means, color=look.colour, **line)
        layers = defined_mean(arrays[f"turn_{kind}"].astype(np.float64))
        maps[kind] = np.stack(
            [defined_mean(layers[chosen & (number == turn)], axis=0) for turn in range(n_turns)]
        )
        place.set_title(TITLES[kind])
        style.number_axis(place.xaxis, n_turns, "turn")
    axes[0, 0].set_ylabel("value of a turn")
    for place, kind in zip(axes[1], VALUES, strict=True):
        picture = place.imshow(maps[kind].T, **IMAGE)
        _finish_map(figure, place, picture)
        style.number_axis(place.xaxis, n_turns, "turn")
        style.number_axis(place.yaxis, maps[kind].shape[1], "")
        place.invert_yaxis()  # layer 0 at the top, as in every map
    axes[1, 0].set_ylabel("layer")
    values = {kind: turn_means(arrays, kind) for kind in VALUES}
    for at in np.flatnonzero(chosen):
        document = int(owner[at])
        facts = _facts(arrays["document_id"][document], arrays["category"][document])
        facts |= {"turn": int(number[at]), "role": str(role[at]), "layer": ALL}
        rows.append(facts | {kind: values[kind][at] for kind in VALUES})
    for turn, layer in np.ndindex(*maps["normalised"].shape):
        facts = _facts(ALL, ALL) | {"turn": turn, "role": ALL, "layer": layer}
        rows.append(facts | {kind: maps[kind][turn, layer] for kind in VALUES})
    return figure, rows


def draw_by_layer(arrays, label):
    """Documents layer by layer, above the same as document by layer."""
    category, ids = arrays["category"], arrays["document_id"]
    names = order_categories(category.tolist())
    order = np.concatenate([np.flatnonzero(category == name) for name in names])
    looks = style.category_looks([name for name in names if name]) | {"": NO_CATEGORY}
    handles = style.category_handles(looks, names) if names != [""] else []
    n, n_layers = len(ids), arrays["whole_normalised"].shape[1]
    caption = (
        f"A thin line a document, mean over its turns' rows and over heads; thick: mean of a "
        f"category. {FOCUS} Documents from top to bottom in the order of the file, by category."
    )
    texts = ("Documents, layer by layer", f"{label}; {n} documents", caption)
    figure, axes = _open(arrays, texts, handles, n_layers)
    alpha = float(np.clip(6 / n, 0.08, 0.5))
    layers = {
        kind: defined_mean(arrays[f"whole_{kind}"].astype(np.float64)) for kind in VALUES
    }  # [document, layer]
    for place, kind in zip(axes[0], VALUES, strict=True):
        for name in names:
            own, colour = layers[kind][category == name], looks[name].colour
            place.plot(own.T, color=colour, linewidth=0.8, alpha=alpha)
            style.draw_series(place, [defined_mean(own, axis=0)] * 3, *looks[name][:2])
        place.set_title(TITLES[kind])
        style.number_axis(place.xaxis, n_layers, "layer")
    axes[0, 0].set_ylabel("value of a document")
    for place, kind in zip(axes[1], VALUES, strict=True):
        _finish_map(figure, place, place.imshow(layers[kind][order], **IMAGE))
        style.number_axis(place.xaxis, n_layers, "layer")
        shown = [printable(ids[i])[:12] for i in order] if n <= MAX_NAMES else []
        shown = shown if place is axes[1, 0] else [""] * len(shown)
        place.set_yticks(range(len(shown)), shown, fontsize=6.5)
    if n > MAX_NAMES:
        axes[1, 0].set_ylabel(f"{n} documents")
    rows = []
    for document, layer in np.ndindex(n, n_layers):
        facts = _facts(ids[document], category[document]) | {"layer": layer}
        rows.append(facts | {kind: layers[kind][document, layer] for kind in VALUES})
    return figure, rows


def _open(arrays, texts, handles, n_columns):
    """Three panels of lines above three maps, wide enough for their columns."""
    panel = (min(3.6, max(2.6, 1.8 + 0.06 * n_columns)), 2.2)
    grid = Grid((2, len(VALUES)), panel, gap=(0.95, 0.75), right=0.75)
    return style.open_panels(grid, texts, handles)


def _finish_map(figure, place, picture):
    place.grid(False)
    figure.colorbar(picture, cax=place.inset_axes([1.03, 0, 0.04, 1])).ax.grid(False)


def _facts(document, category):
    return {"document": str(document), "category": str(category)}
