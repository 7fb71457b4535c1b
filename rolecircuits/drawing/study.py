"""A run as its figures see it: values, tests, intervals, and what stands under a figure."""

from dataclasses import dataclass

import numpy as np

from rolecircuits.drawing.style import (
    CONTRAST_COLOURS,
    NULL_COLOUR,
    RFC_COLOUR,
    RSI_COLOUR,
    Grid,
    Line2D,
    category_looks,
    open_panels,
)
from rolecircuits.inputs.arguments import ALPHA, DEFAULT_SEED
from rolecircuits.inputs.categories import CATEGORIES
from rolecircuits.runs.arrays import Run
from rolecircuits.stats.audit import contrast_reason, name_units
from rolecircuits.stats.contrasts import (
    CONTRASTS,
    available_contrasts,
    compare_categories,
    contrast_sides,
    name_of,
    names_of,
)
from rolecircuits.stats.indices import KINDS, null_values, prompt_values
from rolecircuits.stats.moments import category_mean
from rolecircuits.stats.resampling import N_RESAMPLES, UNBOUNDED, infer_mean, untestable_reason
from rolecircuits.stats.role_tests import blank_untestable
from rolecircuits.stats.units import frame_values, labels_of

PARTS = ("estimate", "low", "high")
USUAL = (CONTRASTS["self_neutral"], CONTRASTS["self_confounder"])
MARKS_NOTE = (
    f"Above the panels: layers that differ from 0 by Benjamini-Hochberg at {ALPHA}, over all "
    "layers, and whose interval excludes it."
)
ZERO = (np.zeros(1), np.nan, np.nan)  # for `limit_to_points`: 0 stays in the panel
SIGN_NOTE = "Difference in focus: entropy of the second less entropy of the first, above 0: what "
SIGN_NOTE += "is named first has the more focused attention."
CUT_NOTE = "The axes follow the points; wider intervals are cut off."
NULL_HANDLE = Line2D(
    [], [], color=NULL_COLOUR, linestyle="--", linewidth=1, label="length null (uniform)"
)


@dataclass
class Study:
    """A run with what its figures share.

    category, unit  [row] of the rows that every value has: prompts, or the frames of a crossed set
    values     {kind: [row, layer, head]} of KINDS
    tests      {contrast: what compare_categories gives, [layer, head]}
    looks      {category: Look}
    """

    run: Run
    category: np.ndarray
    unit: np.ndarray
    values: dict
    tests: dict
    looks: dict
    seed: int
    n_resamples: int

    @property
    def names(self):
        """The categories that the run has."""
        return list(self.run.counts)

    @property
    def counts(self):
        """{category: rows}."""
        return {name: int((self.category == name).sum()) for name in self.names}

    @property
    def subtitle(self):
        """Model, format and n, as every figure names them."""
        return f"{self.run.label}; n = {describe_n(self.run, self.category)}"

    @property
    def reasons(self):
        """{category: why its mean has no interval}, where it has none."""
        what = "frames" if self.run.crossed else "prompts"
        found = {n: untestable_reason(self.category, self.unit, [n], what) for n in self.names}
        return {name: reason for name, reason in found.items() if reason}

    @property
    def has_intervals(self):
        """Whether any category is large enough for one."""
        return len(self.reasons) < len(self.names)

    def label(self, contrast):
        """A contrast in words: self-referent - neutral."""
        named = [" + ".join(self.looks[n].label for n in names_of(side)) for side in contrast]
        return " - ".join(f"({text})" if "+" in text else text for text in named)

    def rows(self, values):
        """Values of prompts [prompt, ...] as those of the rows [row, ...]."""
        return frame_values(self.run, values)

    def layers(self, kind):
        """The value of every row for every layer, the mean over heads: [row, layer]."""
        return self.values[kind].mean(axis=-1)

    def null(self, kind):
        """The same of uniform attention: [row, layer]."""
        return self.rows(null_values(self.run, kind))


def study_run(run: Run, n_resamples=N_RESAMPLES, asked=()):
    """Reduce the entropies and test every head once for all figures, with the tables' seed.

    asked  contrasts "a-b" in place of the usual ones, self-referent against neutral and confounder
    """
    seed, labels, present = DEFAULT_SEED, labels_of(run), set(run.counts)
    values = {kind: frame_values(run, prompt_values(run, kind)) for kind in KINDS}
    chosen = [pair for pair in USUAL if not asked and present.issuperset(pair)]
    chosen = chosen or list(available_contrasts(run.category, asked).values())
    looks = category_looks(run.counts)
    study = Study(run, *labels, values, {}, looks, seed, n_resamples)
    study.tests = {c: test_contrast(study, values["normalised"], c) for c in chosen}
    return study


def describe_n(run: Run, category):
    """How many rows there are of each category: 36 frames per category; category [row]."""
    looks, what = category_looks(run.counts), " frames" if run.crossed else ""
    n = {looks[name].label: int((category == name).sum()) for name in run.counts}
    if len(set(n.values())) == 1:
        return f"{next(iter(n.values()))}{what} per category"
    return ", ".join(f"{count} {label}" for label, count in n.items()) + what


def open_figure(study: Study, title, caption, grid: Grid, handles=(), **options):
    """`open_panels` for a figure of this run: (figure, axes [row, column])."""
    return open_panels(grid, (title, study.subtitle, caption), handles, **options)


def draw_reason(study: Study, title, reason):
    """A figure of one line of text: why there is nothing to draw."""
    figure, axes = open_figure(study, title, "", Grid((1, 1), (6, 1)))
    axes[0, 0].set_axis_off()
    axes[0, 0].text(0, 0.5, reason, va="center", wrap=True)
    return figure, [{"note": reason}]


def estimate(study: Study, values, name, bounds=UNBOUNDED):
    """(mean, low, high), each [...], of a category.

    values  [row, ...]    bounds  what a mean cannot leave
    The interval is NaN where the design allows none.
    """
    rows, draws = study.category == name, (study.n_resamples, study.seed)
    return infer_mean(values[rows], None, study.unit[rows], bounds, *draws)[:3]


def test_contrast(study: Study, values, contrast):
    """What compare_categories gives, first - second in focus; values [row, ...]."""
    labels, draws = (study.category, study.unit), (study.n_resamples, study.seed)
    return blank_untestable(
        study.run, contrast, compare_categories(values, *labels, contrast, *draws)
    )


def difference_parts(test):
    """(estimate, low, high) of what `test_contrast` gave."""
    return tuple(test[part] for part in PARTS)


def contrast_null(study: Study, kind, contrast):
    """The same difference of uniform attention: [layer]; contrast (category, category)."""
    first, second = (category_mean(study.null(kind), study.category, name) for name in contrast)
    return second - first


def few_rows(study: Study, values, name):
    """The values [row, ...] of a category that is too small for an interval, else None."""
    return values[study.category == name] if name in study.reasons else None


def few_differences(study: Study, values, contrast):
    """The differences in focus inside the units of a contrast without an interval: [unit, ...].

    None where there is an interval, or the sides do not pair.
    """
    if contrast_reason(study.run, contrast) is None:
        return None
    second, first, paired = contrast_sides(values, study.category, study.unit, contrast)
    return second - first if paired else None


def contrast_colours(study: Study, contrasts):
    """A colour for each: those of the indices for what RFC and RSI are made of."""
    usual = dict(zip(USUAL, (RFC_COLOUR, RSI_COLOUR), strict=True))
    others = [contrast for contrast in contrasts if contrast not in usual]
    usual |= {c: CONTRAST_COLOURS[i % len(CONTRAST_COLOURS)] for i, c in enumerate(others)}
    return [usual[contrast] for contrast in contrasts]


def contrast_facts(study: Study, contrast):
    """Columns of a CSV that name a contrast and the sizes of its sides."""
    first, second = (name_of(side) for side in contrast)
    n, n_minus = (study.counts[names_of(side)[0]] for side in contrast)
    return {"category": first, "minus": second, "n": n, "n_minus": n_minus}


def survivors_note(study: Study, what, contrasts=None):
    """What the marks mean and how many heads carry one, 0 where nothing survives."""
    counts, reasons = [], []
    for contrast, test in study.tests.items():
        if contrasts is None or contrast in contrasts:
            tested, label = int(np.isfinite(test["q"]).sum()), study.label(contrast)
            found = f"{int((test['q'] < ALPHA).sum())} of {test['q'].size}"
            counts.append(f"{found if tested else 'not tested'} for {label}")
            reasons += untested_notes(study, [contrast], said=())
    passed = f"{what}: heads that pass Benjamini-Hochberg at {ALPHA} over all heads"
    return " ".join([f"{passed} ({', '.join(counts)}).", *reasons])


def untested_notes(study: Study, contrasts, said=None):
    """A sentence on each of these contrasts that has no interval and no test.

    said  reasons that need no sentence; those of the categories' means if None
    """
    said = study.reasons.values() if said is None else said
    reasons = {contrast: contrast_reason(study.run, contrast) for contrast in contrasts}
    untested = {contrast: why for contrast, why in reasons.items() if why and why not in said}
    return [f"{study.label(contrast)}: {why}." for contrast, why in untested.items()]


def points_note(study: Study, contrasts=None):
    """What the small points are, where a category is too small for an interval; else "".

    contrasts  those whose differences inside units are drawn; None: levels of categories are
    """
    drawn = bool(study.reasons)
    if contrasts is not None:
        layers = study.layers("normalised")
        drawn = any(few_differences(study, layers, c) is not None for c in contrasts)
    what = "frame" if study.run.crossed else "prompt" if contrasts is None else "pair"
    return f"Small points: every {what} where there are too few for an interval." if drawn else ""


def axis_rows(axis, estimated, **columns):
    """CSV rows of an estimate along "layer" or "head"; a column is one value or one a row."""
    columns |= dict(zip(PARTS, estimated, strict=True))
    return [
        {axis: i} | {name: value[i] if np.ndim(value) else value for name, value in columns.items()}
        for i in range(len(estimated[0]))
    ]


def write_caption(study: Study, *sentences, intervals=True):
    """What a reader must know under a figure: how intervals are made or why there are none, which
    categories are missing, then `sentences`; empty ones and what is about intervals that no
    category has are left out."""
    missing = [study.looks[name].label for name in CATEGORIES if name not in study.names]
    missing = missing if len(missing) < len(CATEGORIES) else []
    notes, reasons, what = [], study.reasons, name_units(study.run)
    if not study.has_intervals:
        sentences = [text for text in sentences if text not in (CUT_NOTE, MARKS_NOTE)]
    if intervals and study.has_intervals:
        notes.append(f"95 % bootstrap-t intervals over {what} ({study.n_resamples:,} resamples).")
    if intervals:
        notes += [f"{text[0].upper()}{text[1:]}." for text in join_reasons(reasons.values())]
    if missing:
        notes.append(
            f"This run has no {' and no '.join(missing)} prompts: what needs them is left out."
        )
    return " ".join(filter(None, [*notes, *sentences]))


def join_reasons(reasons):
    """Reasons of the form "what: who", those of one "what" as one text."""
    joined = {}
    for reason in dict.fromkeys(reasons):
        what, _, who = reason.partition(": ")
        joined.setdefault(what, []).append(who)
    return [f"{what}: {', '.join(who)}" if all(who) else what for what, who in joined.items()]


def less_null(numbers):
    """(estimate, low, high) of an index less its length null, each [layer].

    numbers  of role_tests.infer_layers, whose interval is the one that p belongs to, or of a
             difference between runs
    """
    estimate = numbers["estimate"] - numbers["null"]
    if "outer" in numbers:
        return estimate, estimate - numbers["outer"], estimate + numbers["outer"]
    return estimate, numbers["low"] - numbers["null"], numbers["high"] - numbers["null"]


def excludes(low, high, value=0.0):
    """Whether an interval leaves a value out: [...] bool, False where there is none."""
    return (low > value) | (high < value)


def has_learned_sinks(run: Run):
    """True for a model whose heads have a key that is no token (gpt-oss)."""
    return bool(run.config["model"].get("learned_sinks"))


def sink_note(run: Run):
    """What readers must know of the sink of this run: that it is a learned key, or a content token
    where no BOS stands before the prompts; empty otherwise.
    """
    if has_learned_sinks(run):
        return "The sink is a learned key that each head has beside its tokens; sink-free drops it."
    n = int((run.span[:, 0] == 0).sum())
    if not n:
        return ""
    return f"Key 0, the attention sink, is itself a content token in {n} prompts without a BOS."
