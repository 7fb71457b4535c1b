"""Figures of a tuning study: numbers in, (matplotlib Figure, rows of its CSV) out.

    tuning_main      compliance, drift and the primary signal by dose; what that signal follows;
                     arms at matched drift
    tuning_signals   each candidate signal: arms compared at matched drift, in units of seed noise
    tuning_profiles  how profiles over layers change, and how alike the changes of two runs are

A change is tuned - step 0; of RFC and RSI it is above 0 where self-referent gains focus. A run is
an arm with a seed, and the unit. Axes of drift are even in its square root (stats.tuning_tests).
"""

import numpy as np
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from rolecircuits.drawing import style
from rolecircuits.drawing.style import BASE_COLOUR, DIVERGING, Grid, Line2D
from rolecircuits.drawing.tuning_names import signal_name, split_verdict
from rolecircuits.drawing.tuning_signals import SHOWN, distances, signal_rows, sort_signals
from rolecircuits.inputs.arguments import ALPHA
from rolecircuits.runs.tuning_results import Checkpoints
from rolecircuits.stats.profile_tests import correlate_rows
from rolecircuits.stats.signal_table import SPECIFIC
from rolecircuits.stats.tuning_profiles import PROJECTION
from rolecircuits.stats.tuning_tests import (
    CONTRASTS,
    gather_runs,
    smallest_p,
    values_at_matched_drift,
)

PROFILES = ("rfc_normalised_crossed", "rsi_sinkfree_crossed")
TARGETS = {"role": 0.70, "shuffled": 0.15}  # compliance at the last dose: at least, at most
THIN = {"linewidth": 0.8, "alpha": 0.4}
THICK = {"linewidth": 2.0, "markersize": 4.5}
SMALL = {"s": 11, "alpha": 0.5, "linewidths": 0, "zorder": 3}
MARKED = {"s": 34, "edgecolors": "black", "linewidths": 0.9, "zorder": 4}
IN_NOISE = (1, 3, 10, 30, 100, 300, 1000)  # ticks of distances in units of seed noise
APART = 0.17  # of the width of a panel, at least, between ticks of drift
CROWDED = 30  # a tick at less than this share of the largest would stand on that of 0
SHORT = {"axis": "y", "style": "sci", "scilimits": (-3, 4)}  # labels of small changes
SIGN = "RFC and RSI above 0: self-referent is the more focused."


def draw_study(study, output_dir, file_format="png"):
    """Draw a loaded Study into a folder, each figure with its CSV in data/; returns their paths."""
    checkpoints, label = study.checkpoints, study.label
    drawings = {"tuning_main": draw_main(checkpoints, study.primary, study.signals, label)}
    if (signals := draw_signals(checkpoints, study.signals, label)) is not None:
        drawings["tuning_signals"] = signals
    if names := [name for name in PROFILES if name in checkpoints.profile.tolist()]:
        drawings["tuning_profiles"] = draw_profiles(checkpoints, names, label)
    return [
        style.save_drawing(output_dir, name, drawing, file_format, study.facts)
        for name, drawing in drawings.items()
    ]


def draw_main(checkpoints: Checkpoints, primary, signals, label):
    """By dose above; below what the primary signal follows, and arms at matched drift.

    primary  the signal that was declared     signals  rows of signals.csv     label  of the study
    """
    looks, name = style.arm_looks(checkpoints.arms), signal_name(primary)
    handles = style.category_handles(looks, checkpoints.arms)
    handles.append(Line2D([], [], color=BASE_COLOUR, marker="D", ls="", label="step 0", ms=5))
    edged = {"color": "white", "markeredgecolor": "black", "marker": "o", "ls": "", "ms": 6}
    handles.append(Line2D([], [], label="scaled to matched drift", **edged))
    asked = ", ".join(
        f"{arm} at {'least' if arm == 'role' else 'most'} {target:.0%}"
        for arm, target in TARGETS.items()
    )
    caption = (
        "Above: thin a run (an arm with a seed), thick the mean of an arm; dotted, what the study "
        f"asks of compliance at the last dose ({asked}). Below: a point a run and dose. n = "
        f"{describe_runs(checkpoints)}. A change is tuned - step 0. {SIGN} Drift: KL from step 0 "
        "of the next token on neutral prompts, its axis even in the square root. R2: of runs left "
        "out of the fit; below 0 it predicts worse than their mean. p: exact permutation of runs, "
        f"uncorrected{describe_least(checkpoints)}."
    )
    texts = (f"What {name} follows under tuning", label, caption)
    figure, axes = style.open_panels(Grid((2, 3), (2.9, 2.1), gap=(0.9, 0.85)), texts, handles)
    change = checkpoints.change(primary)
    by_dose = (
        ("compliance", checkpoints.compliance, "share of held-out answers"),
        ("drift", checkpoints.drift, "nats"),
        (name, change, "tuned - step 0"),
    )
    for place, (title, values, unit) in zip(axes[0], by_dose, strict=True):
        draw_doses(place, checkpoints, values, looks)
        place.set_title(title)
        place.set_ylabel(unit)
    axes[0, 0].set_ylim(-0.03, 1.03)
    for arm in (arm for arm in TARGETS if arm in checkpoints.arms):
        axes[0, 0].axhline(TARGETS[arm], color=looks[arm].colour, linestyle=":", linewidth=1.2)
    axes[0, 1].set_ylim(bottom=0)
    style.draw_zero(axes[0, 2])
    row = next((row for row in signals if row["signal"] == primary), {})
    draw_followed(axes[1], checkpoints, change, (looks, row))
    axes[1, 0].set_ylabel("tuned - step 0")
    draw_matched(axes[1, 2], checkpoints, primary, (looks, row))
    for place in (axes[0, 1], axes[0, 2], *axes[1]):
        place.ticklabel_format(**SHORT)
    rows = [
        {"checkpoint": at, "arm": checkpoints.arm[i], "seed": checkpoints.seed[i]}
        | {"dose": checkpoints.dose[i], "matched": checkpoints.matched[i]}
        | {"compliance": checkpoints.compliance[i], "drift": checkpoints.drift[i]}
        | {"signal": primary, "change": change[i]}
        for i, at in enumerate(checkpoints.names)
    ]
    return figure, rows


def draw_doses(axes, checkpoints, values, looks):
    """A thin line a run and a thick one for the mean of each arm, all from step 0."""
    base = checkpoints.base
    for arm in checkpoints.arms:
        look, at_dose = looks[arm], {}
        for seed in (seed for name, seed in checkpoints.runs if name == arm):
            rows = [base, *checkpoints.rows_of(arm, seed)]
            axes.plot(checkpoints.dose[rows], values[rows], color=look.colour, **THIN)
            for row in rows:
                at_dose.setdefault(int(checkpoints.dose[row]), []).append(values[row])
        doses = sorted(at_dose)
        means = [np.mean(at_dose[dose]) for dose in doses]
        axes.plot(doses, means, color=look.colour, marker=look.marker, **THICK)
    step_0 = {"color": BASE_COLOUR, "marker": "D", "markersize": 5, "clip_on": False}
    axes.plot([0], [values[base]], **step_0, zorder=5)
    axes.set_xlabel("dose (optimizer steps)")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))


def draw_followed(axes, checkpoints, change, drawn):
    """The change of a signal against drift and against compliance; matched runs edged in black.

    drawn  (looks, the signal's row of signals.csv)
    """
    (looks, row), drift = drawn, np.maximum(checkpoints.drift, 0)
    axes[0].set_xscale("function", functions=(np.sqrt, np.square))
    for place, name, x in zip(
        axes, ("drift", "compliance"), (drift, checkpoints.compliance), strict=False
    ):
        for arm in checkpoints.arms:
            look = {"color": looks[arm].colour, "marker": looks[arm].marker}
            own, matched = (checkpoints.rows_of(arm, matched=m) for m in (False, True))
            place.scatter(x[own], change[own], **look, **SMALL)
            place.scatter(x[matched], change[matched], **look, **MARKED)
        base = checkpoints.base
        step_0 = {"color": BASE_COLOUR, "marker": "D", "s": 30, "zorder": 5, "clip_on": False}
        place.scatter(x[base], change[base], **step_0)
        style.draw_zero(place)
        r2 = row.get(f"r2_{name}", np.nan)
        place.set_title(f"against {name}" + (f", R2 {r2:.2f}" if np.isfinite(r2) else ""))
    axes[0].set(xlabel="drift (nats)", xlim=(0, drift.max() * 1.05 or 1.0))
    axes[0].xaxis.set_major_locator(FixedLocator(root_ticks(drift.max())))
    axes[0].xaxis.set_major_formatter("{x:g}")
    axes[1].set(xlabel="compliance", xlim=(-0.03, 1.03), ylim=axes[0].get_ylim())


def root_ticks(most):
    """Round values up to `most` whose labels stand apart on an axis even in the square root."""
    if most <= 0:
        return [0.0]
    size = 10.0 ** np.floor(np.log10(most))
    step = next(s * size for s in (1, 2, 5) if most / (s * size) <= 5)
    kept = [0.0]
    for tick in (step / 10, step / 2, *np.arange(step, most * 1.001, step)):
        if np.sqrt(tick) - np.sqrt(kept[-1]) >= APART * np.sqrt(most):
            kept.append(float(tick))
    return kept


def draw_matched(axes, checkpoints, primary, drawn):
    """Arms side by side: a point a run, a bar for the mean, brackets with the exact p.

    drawn  (looks, the signal's row of signals.csv)
    Without scaled adapters it is the last dose that is shown, untested.
    """
    (looks, row), study = drawn, gather_runs(vars(checkpoints))
    matched, at = study.matched.any(), study.signal.index(primary)
    values = values_at_matched_drift(study)[0] if matched else study.change[:, study.last]
    arms = checkpoints.arms
    for place, arm in enumerate(arms):
        own = values[study.runs_of(arm), at]
        own = own[np.isfinite(own)]
        aside = place + np.linspace(-0.16, 0.16, len(own)) * (len(own) > 1)
        look = {"color": looks[arm].colour, "marker": looks[arm].marker}
        axes.scatter(aside, own, **look, **MARKED)
        if len(own):
            axes.plot([place - 0.3, place + 0.3], [own.mean()] * 2, color=looks[arm].colour, lw=2)
    style.draw_zero(axes)
    axes.set_xticks(range(len(arms)), [looks[arm].label for arm in arms])
    axes.set_xlim(-0.6, len(arms) - 0.4)
    axes.grid(False, axis="x")
    axes.set_title("at matched drift" if matched else "at the last dose")
    (low, high), shown = axes.get_ylim(), [c for c in CONTRASTS if set(c) <= set(arms)]
    step = 0.17 * (high - low)
    shown.sort(key=lambda contrast: abs(arms.index(contrast[0]) - arms.index(contrast[1])))
    tops = np.zeros(len(arms))
    for contrast in shown if matched else []:
        first, last = sorted(map(arms.index, contrast))
        level = tops[first : last + 1].max()
        y, p = high + step * (level + 0.1), row.get(f"{'_'.join(contrast)}_p", np.nan)
        axes.plot([first + 0.06, last - 0.06], [y, y], color="black", linewidth=0.8)
        text = f"p = {p:.3f}" if np.isfinite(p) else "no p"
        axes.text((first + last) / 2, y, text, ha="center", va="bottom", fontsize=7.5)
        tops[first : last + 1] = level + 1 if last - first > 1 else level + 0.999
    axes.set_ylim(low, high + step * (np.ceil(tops.max()) + 0.1))


def describe_runs(checkpoints):
    """How many runs each arm has: "5 runs an arm", or "runs: role 5, facts 4"."""
    counts = {arm: sum(run[0] == arm for run in checkpoints.runs) for arm in checkpoints.arms}
    if len(set(counts.values())) == 1:
        return f"{next(iter(counts.values()))} runs an arm"
    return "runs: " + ", ".join(f"{arm} {n}" for arm, n in counts.items())


def describe_least(checkpoints):
    """ ", none can be below 0.0079": the smallest p of the first contrast that is there."""
    counts = {arm: sum(run[0] == arm for run in checkpoints.runs) for arm in checkpoints.arms}
    there = [contrast for contrast in CONTRASTS if set(contrast) <= set(counts)]
    if not there:
        return ""
    return f"; none can be below {smallest_p(*(counts[arm] for arm in there[0])):.2g}"


def draw_signals(checkpoints: Checkpoints, signals, label):
    """Candidates down: role - facts and role - shuffled at matched drift, in units of seed noise.

    signals  rows of signals.csv     label  of the study
    returns  None where no signal has a difference: one arm, or one run an arm
    """
    rows = [row for row in signal_rows(checkpoints, signals) if len(distances(row))]
    if not rows:
        return None
    plain = [row for row in rows if not row["signal"].startswith(PROJECTION)]
    projected = [row for row in rows if row["signal"].startswith(PROJECTION)]
    shown = [*sort_signals(plain), *sort_signals(projected)]
    looks = style.arm_looks(checkpoints.arms)
    handles = [
        Line2D(
            *([], []),
            color=looks[b].colour,
            marker=looks[b].marker,
            ls="",
            ms=6,
            label=f"{a} - {b}",
        )
        for a, b in SHOWN
        if {a, b} <= set(checkpoints.arms)
    ]
    caption = (
        "Difference of the means of two arms at matched drift / standard deviation between runs "
        f"of one arm there (seed noise); n = {describe_runs(checkpoints)}. Filled: exact "
        f"permutation p < {ALPHA}, uncorrected; the verdict to the right is corrected for all "
        "signals and asks for more than this. The axis is even up to 3 and then compressed. A "
        "signal of the role has both points on one side. Bold: the primary signal, declared before "
        "the first step; then by the smaller distance. profile of ...: how a run's changes over "
        "layers correlate with the mean ones of the other role runs."
    )
    whys = dict.fromkeys(split_verdict(row["verdict"])[1] for row in shown)
    caption += "".join(f" Undecidable: {why}." for why in filter(None, whys))
    texts = ("Which signals tell the role arm from its controls", label, caption)
    grid = Grid((1, 1), (4.3, 0.19 * len(shown) + 0.3), left=2.75, right=1.35, heading=0)
    figure, axes = style.open_panels(grid, texts, handles)
    axis = axes[0, 0]
    axis.set_xscale("asinh", linear_width=3)
    for height, row in enumerate(shown):
        draw_signal(axis, height, row, looks)
    axis.axvline(0, color="black", linewidth=0.8, zorder=1)
    if plain and projected:
        axis.axhline(len(plain) - 0.5, color="black", linewidth=0.6)
    axis.set_ylim(len(shown) - 0.4, -0.6)
    axis.set_yticks(range(len(shown)), [signal_name(row["signal"]) for row in shown], fontsize=7.5)
    for tick, row in zip(axis.get_yticklabels(), shown, strict=True):
        tick.set_weight("bold" if row["primary"] else "normal")
    limit_noise(axis, shown)
    axis.set_xlabel("difference at matched drift / seed noise")
    return figure, shown


def draw_signal(axes, height, row, looks):
    """Both contrasts of one signal at one height, and its verdict to the right."""
    own = distances(row)
    axes.plot(own, [height] * len(own), color="#bbbbbb", linewidth=1, zorder=2)
    for _, other in SHOWN:
        distance, p, look = row[f"role_{other}_distance"], row[f"role_{other}_p"], looks[other]
        face = look.colour if p < ALPHA else "white"
        mark = {"marker": look.marker, "facecolors": face, "edgecolors": look.colour}
        axes.scatter(distance, height, s=26, linewidths=1.1, zorder=3, **mark)
    verdict = split_verdict(row["verdict"])[0]
    how = {"weight": "bold"} if verdict == SPECIFIC else {"color": "#555555"}
    place = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 7.5}
    axes.text(1.02, height, verdict, **place, **how)


def limit_noise(axes, rows):
    """Symmetric limits that hold every point, with round ticks."""
    most = max(1.0, *(np.abs(distances(row)).max() for row in rows)) * 1.15
    ticks = [tick for tick in IN_NOISE if CROWDED * tick >= most >= tick]
    ticks = [*(-tick for tick in ticks[::-1]), 0, *ticks]
    axes.set_xlim(-most, most)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{tick:+d}" if tick else "0" for tick in ticks])


def draw_profiles(checkpoints: Checkpoints, names, label):
    """Change of each profile by layer, and the correlation of these changes between runs."""
    looks = style.arm_looks(checkpoints.arms)
    handles = style.category_handles(looks, checkpoints.arms)
    n_layers = checkpoints.profile_value.shape[-1]
    wide = max(3.4, min(5.5, 1.6 + 0.07 * n_layers))
    at = "matched drift" if checkpoints.matched.any() else "the last dose"
    caption = (
        f"Left: tuned - step 0 at {at}, less the length null; thin a run, thick the mean of an arm "
        f"(n = {describe_runs(checkpoints)}). {SIGN} Right: Pearson's r over layers of the changes "
        "of two runs, in the order of the arms and of their seeds; white 0, red alike, blue "
        "opposite. Framed blocks on the diagonal: runs of one arm."
    )
    texts = ("Where in the model tuning acts: change by layer", label, caption)
    shape = Grid((len(names), 2), (wide, 2.5), gap=(0.75, 0.75), right=1.05)
    figure, axes = style.open_panels(shape, texts, handles)
    rows, picture = [], None
    places = [compared_rows(checkpoints, arm) for arm in checkpoints.arms]
    order = np.concatenate(places)
    for (lines, matrix), name in zip(axes, names, strict=True):
        change = checkpoints.profile_change(name)
        draw_changes(lines, change, places, [looks[arm] for arm in checkpoints.arms])
        lines.set_title(f"change of {signal_name(name)}")
        centred = change[order] - change[order].mean(axis=1, keepdims=True)
        r = correlate_rows(centred[:, None], centred[None])
        picture = draw_correlations(matrix, r, [len(own) for own in places], checkpoints.arms)
        matrix.set_title("r between runs")
        rows += profile_rows(checkpoints, name, change, (order, r))
    style.add_colour_bar(figure, axes, picture, "r between runs")
    return figure, rows


def compared_rows(checkpoints, arm):
    """The places at which runs of an arm are compared, by seed: matched drift, or the last dose."""
    rows = checkpoints.rows_of(arm, matched=True)
    if not len(rows):
        rows = checkpoints.rows_of(arm)
        rows = rows[checkpoints.dose[rows] == checkpoints.dose.max()]
    return rows[np.argsort(checkpoints.seed[rows], kind="stable")]


def draw_changes(axes, change, places, looks):
    """Thin lines of runs and the thick mean of each arm, by layer; change [checkpoint, layer]."""
    layers = np.arange(change.shape[1])
    alone = {"marker": "_", "markersize": 8} if len(layers) == 1 else {}
    for rows, look in zip(places, looks, strict=True):
        axes.plot(layers, change[rows].T, color=look.colour, **THIN, **alone)
        marks = {"marker": look.marker, "markevery": -(-len(layers) // 40)}
        line = THICK | {"markersize": 3.5}
        axes.plot(layers, change[rows].mean(axis=0), color=look.colour, **marks, **line)
    style.draw_zero(axes)
    style.number_axis(axes.xaxis, len(layers), "layer")
    axes.ticklabel_format(**SHORT)
    axes.set_ylabel("tuned - step 0")


def draw_correlations(axes, r, counts, arms):
    """A square of r [run, run], arms between lines; returns the image, its colours centred at 0."""
    look = {"cmap": DIVERGING, "vmin": -1, "vmax": 1, "aspect": "auto", "interpolation": "nearest"}
    axes.set_facecolor("#dddddd")
    picture = axes.imshow(np.ma.masked_invalid(r), **look)
    axes.grid(False)
    ends = np.cumsum(counts)
    for end in ends[:-1]:
        axes.axhline(end - 0.5, color="black", linewidth=0.8)
        axes.axvline(end - 0.5, color="black", linewidth=0.8)
    middle = ends - np.array(counts) / 2 - 0.5
    axes.set_xticks(middle, arms)
    axes.set_yticks(middle, arms)
    axes.tick_params(length=0)
    axes.spines[["top", "right"]].set_visible(True)
    return picture


def profile_rows(checkpoints, name, change, compared):
    """Rows of the CSV of one profile: change by layer, then r of every two runs.

    compared  (places of the checkpoints, r [run, run])
    """
    order, r = compared
    runs = [{"arm": checkpoints.arm[i], "seed": checkpoints.seed[i]} for i in order]
    nobody, rows = {"other_arm": "", "other_seed": ""}, []
    for run, place in zip(runs, order, strict=True):
        facts = {"profile": name, "quantity": "change"} | run | nobody
        rows += [facts | {"layer": n, "estimate": x} for n, x in enumerate(change[place])]
    for i, j in zip(*np.triu_indices(len(order), 1), strict=True):
        other = {f"other_{key}": value for key, value in runs[j].items()}
        facts = {"profile": name, "quantity": "correlation"} | runs[i] | other
        rows.append(facts | {"layer": "", "estimate": r[i, j]})
    return rows
