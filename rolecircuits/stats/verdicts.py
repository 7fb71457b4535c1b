"""What the tests of a run say, in lines and cells for the terminal; rows as stats.role_tests gives
them.
"""

from collections import Counter

import numpy as np

from rolecircuits.inputs.arguments import ALPHA
from rolecircuits.stats import indices
from rolecircuits.stats.role_tests import MATCHED, PRIMARY, VERDICTS

SAID = dict(zip(VERDICTS, ("differ", "differ by less", "equivalent", "undecided"), strict=True))


def rows_of(compared, name, kind="normalised"):
    """The rows of contrasts.csv of one contrast and kind, layer by layer."""
    return [row for row in compared if row["contrast"] == name and row["kind"] == kind]


def contrast_cells(name, compared):
    """Cells of one contrast over its layers: name, prompts, frames, effective n, mean, extremes,
    how many layers pass each test, of how many.
    """
    rows = rows_of(compared, name)
    value = np.array([row["estimate"] for row in rows])
    size = [rows[0]["prompts"], rows[0]["frames"]]
    effective = np.array([row["effective_n"] for row in rows])
    size.append("-" if np.isnan(effective).all() else f"{np.nanmedian(effective):.0f}")
    if np.isnan(value).all():
        return [name, *size, *"------", len(rows)]
    ends = [f"{value[at]:+.4f} @{at}" for at in (np.nanargmin(value), np.nanargmax(value))]
    passed = [sum(row[test] < ALPHA for row in rows) for test in ("p", "q", "p_max")]
    if all(row["p"] != row["p"] for row in rows):
        passed = ["-"] * 3
    return [name, *size, f"{np.nanmean(value):+.4f}", *ends, *passed, len(rows)]


def describe_interactions(names, compared):
    """One line: how large every family is over its layers, the control among them."""
    sizes = []
    for name in names:
        value = np.array([row["estimate"] for row in rows_of(compared, name)])
        sizes.append(f"{name} {np.sqrt(np.nanmean(value**2)):.4f}")
    return (
        f"root mean square over layers: {', '.join(sizes)}; what the control shows as well is not "
        "about the model"
    )


def describe_survivors(what, tests):
    """One line on a family of tests: what passes BH and max-T at ALPHA, or that nothing does."""
    p, q, p_max = (np.ravel(tests[key]) for key in ("p", "q", "p_max"))
    tested = int(np.isfinite(p).sum())
    if not tested:
        return f"no {what} could be tested"
    alone, by_bh, by_max = (int((x < ALPHA).sum()) for x in (p, q, p_max))
    uncorrected = f"uncorrected p < {ALPHA}: {alone} of {tested}"
    uncorrected += f", {ALPHA * tested:.1f} expected by chance"
    if not by_bh and not by_max:
        return f"no {what} survives max-T/BH at {ALPHA} ({uncorrected})"
    return f"{by_max} of {tested} {what}s survive max-T and {by_bh} BH at {ALPHA} ({uncorrected})"


def list_verdicts(layers, heads, reasons, margin):
    """The primary family first, then one line a secondary family of tests.

    layers   rows of `layer_metrics`      heads  as `contrast_heads` gives them
    reasons  {contrast or index: why it has no tests, or None}
    Indices whose categories the run lacks have no line, and a crossed set none for what is matched
    on the first word, which is the normalised index there.
    """
    primary = [row for row in layers if row["family"] == "primary"]
    lines = [
        "no primary family: that is RFC and RSI of a crossed set, normalised; all is secondary"
    ]
    if any(row["estimate"] == row["estimate"] for row in primary):
        lines = describe_primary(primary, reasons, margin)
    elif primary or not layers:
        lines = ["no primary family: RFC and RSI need categories that this set lacks"]
    for name, tests in heads.items():
        lines.append(f"secondary, {name}: {reasons.get(name) or describe_survivors('head', tests)}")
    for kind in ("normalised", "sinkfree", *MATCHED):
        for index in indices.INDICES:
            rows = [row for row in layers if row["kind"] == kind and row["index"] == index]
            done = not rows or rows[0]["family"] == "primary" or kind == "first_word_matched"
            if done or np.isnan([row["estimate"] for row in rows]).all():
                continue
            tests = {name: [row[name] for row in rows] for name in ("p", "q", "p_max")}
            said = reasons.get(index) or describe_survivors("layer", tests)
            lines.append(f"secondary, {kind} {index.upper()}: {said}")
            if kind == PRIMARY and not reasons.get(index):
                lines.append(f"    {describe_found(rows, margin)}")
    return [*lines, "each line is one family: its corrections hold inside it, not across lines"]


def describe_primary(rows, reasons, margin):
    """Lines on RFC and RSI of a crossed set, one family of max-T over the layers of both."""
    tested = len({row["layer"] for row in rows if row["p"] == row["p"]})
    if not tested:
        why = list(dict.fromkeys(filter(None, map(reasons.get, indices.INDICES))))
        said = "; ".join(why) or "no layer could be tested"
        return [f"primary (RFC and RSI by layer, normalised): {said}"]
    lines = [f"primary (RFC and RSI of {tested} layers, normalised, max-T over both):"]
    for index in indices.INDICES:
        own = [row for row in rows if row["index"] == index]
        if all(row["p"] != row["p"] for row in own):
            continue
        n = sum(row["p_primary"] < ALPHA for row in own)
        lines.append(
            f"    {index.upper()}: {n} of {len(own)} layers pass max-T at {ALPHA}; "
            f"{describe_found(own, margin)}"
        )
    return lines


def describe_found(rows, margin):
    """How many layers differ, are equivalent or undecided, and what could have been found."""
    counts = Counter(row["verdict"] for row in rows)
    named = ", ".join(f"{counts[name]} {SAID[name]}" for name in VERDICTS if counts[name])
    mde = [row["mde"] for row in rows if row["mde"] == row["mde"]]
    smallest = f"{np.median(mde):.3f}" if mde else "undefined"
    opposite = sum(row["sign_disagrees"] is True or row["sign_disagrees"] == 1 for row in rows)
    text = f"BH and margin {margin:g}: {named or 'none'}; "
    text += f"80 % power for a layer at {smallest} (median)"
    if opposite:
        text += f"; {opposite} layers have the other sign within shared first words"
    return text
