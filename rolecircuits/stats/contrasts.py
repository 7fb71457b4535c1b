"""Two categories compared value by value: Hedges g, p, Benjamini-Hochberg q and max-T p.

A contrast is (first, second). Its estimate is a difference of focus, which is entropy with its sign
turned:

    estimate = H_second - H_first         > 0: the first is the more focused, as in RFC and RSI

Either side is a category, or a tuple of categories whose values are averaged inside every unit: so
an interaction is written.
"""

import numpy as np
from scipy.special import ndtri, stdtrit

from rolecircuits.inputs.arguments import DEFAULT_SEED
from rolecircuits.inputs.categories import PAIRED, order_categories
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.stats.index_inference import Means
from rolecircuits.stats.moments import column_blocks, defined_mean, defined_moments, divide
from rolecircuits.stats.resampling import (
    CONFIDENCE,
    N_RESAMPLES,
    Summary,
    bootstrap_weights,
    infer_difference,
    is_testable,
    nth_seed,
)
from rolecircuits.stats.units import ALONE, is_clustered, matched_rows

MIN_PAIRS = 3  # of two pairs the correlation is 1 or -1, and g would be 0
CONTRASTS = {
    "self_confounder": ("self_referent", "confounder"),
    "self_neutral": ("self_referent", "neutral"),
    "confounder_third": PAIRED,
}
# of the set `deixis`: half of (you - I in the user's turn) - (you - I in the assistant's), so that
# pronoun and turn cancel; and the same of she or he and it, who are the model in neither turn
INTERACTIONS = {
    "about_model": (("you_user", "i_assistant"), ("i_user", "you_assistant")),
    "control_third_it": (("third_user", "it_assistant"), ("it_user", "third_assistant")),
}


def names_of(side):
    """The categories of a side of a contrast."""
    return (side,) if isinstance(side, str) else side


def categories_of(contrast):
    """The categories of a contrast, first side first."""
    return [name for side in contrast for name in names_of(side)]


def coefficients_of(contrast):
    """{category: its coefficient in H_second - H_first}."""
    signed = zip((-1.0, 1.0), contrast, strict=True)
    return {name: sign / len(names_of(side)) for sign, side in signed for name in names_of(side)}


def name_of(side):
    """A side of a contrast in words."""
    return side if isinstance(side, str) else " + ".join(side)


def available_contrasts(category, asked=()):
    """{name: contrast}; the first one ranks heads.

    asked  texts "a-b", as --contrast gives them. Without any: CONTRASTS and INTERACTIONS whose
           categories are present; where there are none, the first category against each other one.
    """
    present = order_categories(np.asarray(category).tolist())
    if asked:
        return {text: parse_contrast(text, present) for text in dict.fromkeys(asked)}
    if len(present) < 2:
        raise UserError(f"only {' '.join(map(printable, present))} prompts; a contrast needs two")
    known = CONTRASTS | INTERACTIONS
    found = {name: c for name, c in known.items() if set(present).issuperset(categories_of(c))}
    return found or {f"{present[0]}-{other}": (present[0], other) for other in present[1:]}


def parse_contrast(text, present):
    """(first, second) of a text "first-second"; both must be among the categories `present`."""
    sides, allowed = text.split("-"), ", ".join(map(printable, present))
    shown = f"--contrast {printable(text)[:100]}"
    if len(sides) != 2:
        raise UserError(
            f"{shown}: must be two categories with one '-' between; there are {allowed}"
        )
    for side in sides:
        if side not in present:
            unknown = printable(side)[:60]
            raise UserError(f"{shown}: unknown category {unknown!r}; there are {allowed}")
    if sides[0] == sides[1]:
        raise UserError(f"{shown}: the two categories must differ")
    return tuple(sides)


def contrast_sides(values, category, unit, contrast):
    """(values of the second side, values of the first, whether they are paired unit for unit): in
    this order their difference has the sign of the contrast.

    values  [row, ...], entropies; category, unit  [row] as in stats.units
    """
    names = categories_of(contrast)
    matched = matched_rows(category, unit, names)
    if matched is None:
        if len(names) > 2:
            joined = " - ".join(map(name_of, contrast))
            raise UserError(f"{joined}: needs a crossed set, in which every frame has all of them")
        category = np.asarray(category)
        return values[category == names[1]], values[category == names[0]], False
    of_name = dict(zip(names, matched, strict=True))
    sides = []
    for side in reversed(contrast):
        rows = [of_name[name] for name in names_of(side)]
        sides.append(sum(values[own] for own in rows) / len(rows))
    return *sides, True


def infer_contrast(values, category, unit, contrast, n_resamples=N_RESAMPLES, seed=DEFAULT_SEED):
    """H_second - H_first of a contrast: Inference, each field [...].

    values  [row, ...], entropies; category, unit  [row] as in stats.units
    Categories that match unit for unit are compared inside the units; clusters are drawn whole.
    """
    values, category = np.asarray(values, dtype=np.float64), np.asarray(category)
    unit = np.full(len(category), ALONE) if unit is None else np.asarray(unit)
    if not is_clustered(category, unit):
        return infer_difference(
            *contrast_sides(values, category, unit, contrast), n_resamples, seed
        )
    slopes = coefficients_of(contrast)
    flat = values.reshape(len(values), -1)
    chosen = np.isin(category, list(slopes))
    flat, category, unit = flat[chosen], category[chosen], unit[chosen]
    out = Summary(flat.shape[1], n_resamples)
    for columns, rows in column_blocks(~np.isnan(flat), n_resamples):
        part, own, together = flat[np.ix_(rows, columns)], category[rows], unit[rows]

        def draw(places, number, part=part, own=own, rows=rows, together=together):
            weights = bootstrap_weights(category, unit, n_resamples, nth_seed(seed, number))
            means = Means([part[:, places]], own, weights[rows], together, tuple(slopes))
            return means.draws(slopes)

        out.add(columns, draw(slice(None), 0), is_testable(own, together, slopes), draw)
    return out.finish(values.shape[1:])


def compare_categories(
    values, category, unit, contrast, n_resamples=N_RESAMPLES, seed=DEFAULT_SEED
):
    """The contrast (first, second) of every column, H_second - H_first, as a dict of arrays [...].

    values   [row, ...], entropies; all columns are one family for q (Benjamini-Hochberg) and p_max
             (max-T)
    returns  "estimate", "low", "high", "error", "g", "g_low", "g_high", "p", "q", "p_max"
    """
    found = infer_contrast(values, category, unit, contrast, n_resamples, seed)
    unit = np.full(len(category), ALONE) if unit is None else unit
    a, b, paired = contrast_sides(values, category, unit, contrast)
    g = hedges_g(a, b, paired)
    if is_clustered(category, unit):
        low, high = _clustered_g_interval(g, a, b, found)
    else:
        undefined = np.isnan(found.low)
        low, high = (np.where(undefined, np.nan, end) for end in hedges_g_interval(a, b, paired))
    sizes = {"estimate": found.estimate, "low": found.low, "high": found.high}
    sizes |= {"error": found.error, "g": g, "g_low": low, "g_high": high}
    return sizes | {"p": found.p, "q": q_values(found.p), "p_max": found.p_max}


def _clustered_g_interval(g, a, b, found):
    """The interval of the difference in units of g's spread; the spread counts as known."""
    scale = divide(g, defined_mean(a, axis=0) - defined_mean(b, axis=0))
    return found.low * scale, found.high * scale


def q_values(p):
    """Benjamini-Hochberg adjusted p-values over all defined entries: [...] -> [...].

        q of the k-th smallest of m = min over j >= k of m p_(j) / j, at most 1
        (Benjamini and Hochberg 1995)

    NaN stays NaN and counts for nothing. Not scipy.stats.false_discovery_control, whose import
    takes longer than a whole comparison; the tests hold it against that.
    """
    p = np.asarray(p, dtype=np.float64)
    q, defined = np.full(p.shape, np.nan), np.flatnonzero(~np.isnan(p))
    order = defined[np.argsort(-p.ravel()[defined])]
    m = len(order)
    q.flat[order] = np.minimum.accumulate(np.minimum(p.ravel()[order] * m / np.arange(m, 0, -1), 1))
    return q


def hedges_g(a, b, paired=False):
    """Standardised mean difference without small-sample bias: [prompt, ...] twice -> [...].

        g = J(df) (mean a - mean b) / s, s^2 the mean of both variances, J = 1 - 3 / (4 df - 1)
        (Hedges 1981; Bonett 2008)

    df = n_a + n_b - 2; for pairs that correlate with r 2 (n - 1) / (1 + r^2), the pooled spread's
    NaN where a group has fewer than two defined values or nothing varies
    """
    return _effect_size(a, b, paired)[0]


def hedges_g_interval(a, b, paired=False):
    """(low, high) of `hedges_g` at 95 %, from a variance that supposes nearly normal values.

    Bonett (2008), separate variances: unpaired with a normal quantile, paired with the t quantile
    of n - 1. Borenstein et al. (2009) treat the correlation of pairs as known: 88 % coverage at
    n = 10.
    """
    g, variance, df = _effect_size(a, b, paired)
    quantile = stdtrit(df, (1 + CONFIDENCE) / 2) if paired else ndtri((1 + CONFIDENCE) / 2)
    half = quantile * np.sqrt(variance)
    return g - half, g + half


def _effect_size(a, b, paired):
    """(g, its variance, df of its interval), each [...]; half-defined pairs are left out."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if paired:
        broken = np.isnan(a) | np.isnan(b)
        a, b = np.where(broken, np.nan, a), np.where(broken, np.nan, b)
    (n_a, mean_a, var_a), (n_b, mean_b, var_b) = defined_moments(a), defined_moments(b)
    with np.errstate(divide="ignore", invalid="ignore"):
        pooled = (var_a + var_b) / 2
        d = (mean_a - mean_b) / np.sqrt(pooled)
        if paired:
            var_difference, df = defined_moments(a - b)[2], n_a - 1
            product = ((var_a + var_b - var_difference) / 2) ** 2
            variance = d**2 * (var_a**2 + var_b**2 + 2 * product) / (8 * df * pooled**2)
            j = 1 - 3 / (8 * df / (1 + product / (var_a * var_b)) - 1)
            variance = j**2 * (variance + var_difference / (pooled * df))
        else:
            df = n_a + n_b - 2
            j = 1 - 3 / (4 * df - 1)
            df_a, df_b = n_a - 1, n_b - 1
            variance = d**2 * (var_a**2 / df_a + var_b**2 / df_b) / (8 * pooled**2)
            variance = j**2 * (variance + (var_a / df_a + var_b / df_b) / pooled)
    defined = np.isfinite(d) & np.isfinite(variance) & (not paired or n_a >= MIN_PAIRS)
    return np.where(defined, j * d, np.nan), np.where(defined, variance, np.nan), df
