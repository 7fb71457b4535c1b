"""A run as its nine figures see it: values, tests, intervals, and what stands under a figure."""

from dataclasses import dataclass

import numpy as np

from rolecircuits.drawing.style import NAMES, NULL_COLOUR, Grid, Line2D, open_panels
from rolecircuits.inputs.arguments import ALPHA, DEFAULT_SEED
from rolecircuits.inputs.categories import CATEGORIES, PAIRED
from rolecircuits.runs.arrays import Run
from rolecircuits.stats.contrasts import CONTRASTS, compare_categories
from rolecircuits.stats.indices import prompt_values
from rolecircuits.stats.resampling import (
    MIN_PROMPTS,
    N_RESAMPLES,
    mean_difference_interval,
    mean_interval,
    pair_rows,
)

PANELS = ("raw", "normalised")
UNITS = {"raw": "raw entropy (nats)", "normalised": "normalised entropy"}
TESTED = (CONTRASTS["self_neutral"], CONTRASTS["self_confounder"])
NULL_NOTE = "Dashed: length null, the same quantity if attention were uniform over the visible keys"
NULL_HANDLE = Line2D(
    [], [], color=NULL_COLOUR, linestyle="--", linewidth=1, label="length null (uniform)"
)


@dataclass
class Study:
    """A run with what its figures share.

    values  {kind: [prompt, layer, head]} for the kinds of PANELS
    tests   {(category, minus): what compare_categories gives, [layer, head]} for those of TESTED
    """

    run: Run
    values: dict
    tests: dict
    seed: int
    n_resamples: int

    @property
    def names(self):
        """The categories that the run has."""
        return list(self.run.counts)

    @property
    def subtitle(self):
        """Model, format and n, as every figure names them."""
        n = self.run.counts
        if len(set(n.values())) == 1:
            return f"{self.run.label}; n = {n[self.names[0]]} per category"
        return f"{self.run.label}; n = " + ", ".join(f"{n[name]} {NAMES[name]}" for name in n)

    def layers(self, kind):
        """The value of every prompt for every layer, the mean over heads: [prompt, layer]."""
        return self.values[kind].mean(axis=-1)


def study_run(run: Run, n_resamples=N_RESAMPLES):
    """Reduce the entropies and test every head once for all figures, with the tables' seed."""
    values, seed = {kind: prompt_values(run, kind) for kind in PANELS}, DEFAULT_SEED
    tests = {
        pair: compare_categories(
            values["normalised"], run.category, run.pair_id, pair, n_resamples, seed
        )
        for pair in TESTED
        if set(pair) <= set(run.counts)
    }
    return Study(run, values, tests, seed, n_resamples)


def open_figure(study: Study, title, caption, grid: Grid, handles=(), **options):
    """`open_panels` for a figure of this run: (figure, axes [row, column])."""
    return open_panels(grid, (title, study.subtitle, caption), handles, **options)


def draw_reason(study: Study, title, reason):
    """A figure of one line of text: why there is nothing to draw."""
    figure, axes = open_figure(study, title, "", Grid((1, 1), (6, 1)))
    axes[0, 0].set_axis_off()
    axes[0, 0].text(0, 0.5, reason, va="center", wrap=True)
    return figure, [{"note": reason}]


def estimate(study: Study, values, name, minus=None):
    """(mean, ci_low, ci_high), each [...], of a category, or of its difference from `minus`.

    values  [prompt, ...]; the interval is NaN where a category has too few prompts

    Matched pairs are resampled as pairs.
    """
    run, settings = study.run, (study.n_resamples, study.seed)
    if minus is None:
        return mean_interval(values[run.category == name], *settings)
    pairs = pair_rows(run.category, run.pair_id) if (name, minus) == PAIRED else None
    sides = pairs or [run.category == name, run.category == minus]
    return mean_difference_interval(*(values[side] for side in sides), pairs is not None, *settings)


def survivors_note(study: Study, what, contrasts=TESTED):
    """What the marks mean and how many heads carry one, 0 where nothing survives."""
    counts = ", ".join(
        f"{int((test['q'] < ALPHA).sum())} of {test['q'].size} for {NAMES[a]} - {NAMES[b]}"
        for (a, b), test in study.tests.items()
        if (a, b) in contrasts
    )
    return f"{what}: heads that pass Benjamini-Hochberg at {ALPHA} over all heads ({counts})."


def axis_rows(axis, estimated, **columns):
    """CSV rows of an estimate along "layer" or "head"; a column is one value or one a row."""
    columns |= dict(zip(("mean", "ci_low", "ci_high"), estimated, strict=True))
    return [
        {axis: i} | {name: value[i] if np.ndim(value) else value for name, value in columns.items()}
        for i in range(len(estimated[0]))
    ]


def write_caption(study: Study, *sentences, intervals=True):
    """What a reader must know under a figure: how intervals are made or why there are none, which
    categories are missing, then `sentences`; empty ones are left out."""
    few = [f"{n} {NAMES[name]}" for name, n in study.run.counts.items() if n < MIN_PROMPTS]
    missing = [NAMES[name] for name in CATEGORIES if name not in study.names]
    notes = []
    if intervals and len(few) < len(study.names):
        notes.append(f"95 % bootstrap-t intervals over prompts ({study.n_resamples:,} resamples).")
    if intervals and few:
        notes.append(
            f"No intervals for what rests on too few prompts ({', '.join(few)}): "
            f"they need {MIN_PROMPTS}."
        )
    if missing:
        notes.append(
            f"This run has no {' and no '.join(missing)} prompts: what needs them is left out."
        )
    return " ".join(filter(None, [*notes, *sentences]))


def sink_note(run: Run):
    """A warning for figures of content tokens where no BOS stands before them; empty otherwise."""
    n = int((run.span[:, 0] == 0).sum())
    if not n:
        return ""
    return f"Key 0, the attention sink, is itself a content token in {n} prompts without a BOS."
