"""The person effect language by language: one figure, and what language_study.py prints."""

import numpy as np

from rolecircuits.drawing.style import DIVERGING, plt, signed_root, wrap_text
from rolecircuits.drawing.tables import interval, print_table, right, say
from rolecircuits.inputs.errors import printable
from rolecircuits.inputs.languages import DROP, LANGUAGES, PREFIX
from rolecircuits.stats.language_profiles import EFFECTS, correlation_matrix

NAMES = {"rfc": "RFC: you - it", "rsi": "RSI: you - I", "third": "you - she or he"}
PANEL, ROW = 0.9, 0.24  # inches: what a panel needs besides its rows, and a row
DARK = 0.6  # of the largest |r|: from here a number is written in white


def set_name(profile):
    """German, or Spanish, dropped."""
    dropped = ", dropped" if profile.source.endswith(DROP) else ""
    return LANGUAGES[profile.language] + dropped


def draw_languages(profiles, correlations, label):
    """(figure, rows of its CSV): left the profiles, one line a set; right r of each pair.

    profiles  [LanguageProfile]    correlations  rows of language_correlations.csv
    """
    shown = {e: [p for p in profiles if e in p.inference] for e in EFFECTS}
    effects = [effect for effect in EFFECTS if shown[effect]]
    size = (11, 0.9 + sum(PANEL + ROW * len(shown[effect]) for effect in effects))
    figure = plt.figure(figsize=size)
    grid = figure.add_gridspec(
        len(effects), 2, width_ratios=(3, 2), height_ratios=[2 + len(shown[e]) for e in effects]
    )
    values = {e: np.array([p.inference[e].estimate for p in shown[e]]) for e in effects}
    limit = max(float(np.nanmax(np.abs(own))) for own in values.values()) or 1.0
    norm, rows = signed_root(limit), []
    for i, effect in enumerate(effects):
        names = [f"{set_name(p)} ({p.n_frames})" for p in shown[effect]]
        axis = figure.add_subplot(grid[i, 0])
        image = axis.imshow(values[effect], cmap=DIVERGING, norm=norm, aspect="auto")
        axis.set_yticks(range(len(names)), names)
        axis.set_title(f"{NAMES[effect]} by layer")
        axis.grid(False)
        mark_survivors(axis, [p.inference[effect] for p in shown[effect]])
        if i == len(effects) - 1:
            axis.set_xlabel("layer; a dot: p_max < 0.05 within the set")
        figure.colorbar(image, ax=axis, label="> 0: you more focused", pad=0.01)
        beside = figure.add_subplot(grid[i, 1])
        short = [profile.source.removeprefix(PREFIX) for profile in shown[effect]]
        draw_matrix(beside, correlation_matrix(shown[effect], correlations, effect), short)
        beside.set_title("r of profiles")
        for profile in shown[effect]:
            own = profile.inference[effect].estimate
            cells = [{"index": effect, "layer": at, "estimate": v} for at, v in enumerate(own)]
            rows += [profile.facts | cell for cell in cells]
    title = f"{printable(label)}: the person effect by language (frames kept)"
    figure.suptitle(wrap_text(title, size[0] - 0.4, 11), weight="bold", fontsize=11)
    return figure, rows


def mark_survivors(axis, found):
    """A dot on every layer that passes max-T over the layers of its set."""
    for line, own in enumerate(found):
        layers = np.flatnonzero(own.p_max < 0.05)
        axis.plot(layers, np.full(len(layers), line), ".", color="black", markersize=3)


def draw_matrix(axis, matrix, names):
    """Numbers of r on grey: white 0 or below, the darker the more alike; names of the columns."""
    axis.imshow(matrix, cmap="Greys", vmin=0, vmax=1, aspect="auto")
    for i, j in np.argwhere(np.isfinite(matrix) & ~np.eye(len(matrix), dtype=bool)):
        colour = "white" if matrix[i, j] > DARK else "black"
        text = f"{matrix[i, j]:+.2f}"
        axis.text(j, i, text, ha="center", va="center", fontsize=6.5, color=colour)
    axis.set_xticks(range(len(names)), names)
    axis.set_yticks([])
    axis.grid(False)


def print_languages(profiles, correlations, typology, skipped, note=""):
    """The tables: means over layers by set, how alike the profiles are, and typology.

    skipped  {set: why it was not measured}    note  what is said below them
    """
    rows = []
    for profile in profiles:
        for effect, mean in profile.mean.items():
            first = effect == next(iter(profile.mean))
            named = (set_name(profile), profile.n_frames) if first else ("", "")
            rows.append((*named, effect, *_cells(mean, profile.inference[effect])))
    rows += [(source, "-", "-", "-", "-") for source in skipped]
    columns = ["set", right("frames"), "index", interval("mean [95 %]"), right("layers")]
    below = "layers: how many pass max-T. rfc: you - it, rsi: you - I, third: you - she or he"
    title = "means over layers, normalised; > 0: attention on you is the more focused"
    print_table(columns, rows, title, below)
    if correlations:
        print_table(
            ["index", *map(right, ("pairs", "median r", "lowest", "highest", "interval > 0"))],
            [_agreement(correlations, effect) for effect in EFFECTS],
            "how alike the profiles of two sets are (Pearson's r over layers)",
            "interval > 0: pairs whose 95 % interval over frames lies above 0",
        )
    if typology:
        columns = ("r", "p", "q", "floor of p")
        n, found = typology[0]["languages"], [r for r in typology if np.isfinite(r["p"])]
        cells = [
            (r["index"], r["feature"], *(f"{r[c]:.4f}" for c in ("estimate", "p", "q", "floor")))
            for r in found
        ]
        print_table(
            ["index", "feature", *map(right, columns)],
            cells,
            f"do languages of one kind have like profiles? n = {n} languages",
            "permutation of languages, one-sided; q over all rows. family and slot words are "
            "controls: relatives share constructions and words (te, me, la). Where a control is as "
            "strong as a feature, the feature explains nothing by itself",
        )
    if note:
        say(f"note: {note}")


def _cells(mean, found):
    """(mean over layers with its interval, layers that pass max-T)"""
    number = f"{mean.estimate:+.4f}"
    if np.isfinite(mean.low):
        number += f" [{mean.low:+.4f}, {mean.high:+.4f}]"
    return number, int((found.p_max < 0.05).sum())


def _agreement(correlations, effect):
    own = [row for row in correlations if row["index"] == effect]
    r = np.array([row["estimate"] for row in own])
    if not np.isfinite(r).any():
        return effect, len(own), "-", "-", "-", "-"
    above = sum(row["low"] > 0 for row in own)
    numbers = (f"{value:+.2f}" for value in (np.nanmedian(r), np.nanmin(r), np.nanmax(r)))
    return effect, len(own), *numbers, above
