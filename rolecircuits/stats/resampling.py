"""Intervals and p-values over units: frames, clusters or prompts; heads and rows are never units.

    bootstrap  units (stats.units) are drawn with replacement: the frames of a crossed set; the
               clusters of a set whose prompts share frames, all categories in one draw; else
               prompts within each category. Two runs of a comparison use the same draw
    interval   estimate -+ c * error, c the 95 % point of |t*| = |estimate* - estimate| / error*
               over the draws, error* recomputed in every draw (symmetric bootstrap-t, Hall 1988)
    p          up to c (b + 1) / (m + 1), b the draws whose |t*| reaches |t| (Hall 1992, ch. 3;
               Phipson and Smyth 2010). Beyond c, where it is below 0.05 and the interval leaves 0
               out, the larger of b / m and of Student's t scaled to pass (c, 0.05), whose degrees
               of freedom are the number of units that carry the variance,
               (sum D^2)^2 / sum D^4 - 1 over their contributions D: far out a bootstrap of skewed
               values is too sure. Columns that few draws reach get more draws
    p_max      max-T by smallest p (Westfall and Young 1993): 1 - (1 - p)^k, k the number of
               independent tests that the correlated columns of the family are worth in the draws

Below MIN_UNITS units, or MIN_EFFECTIVE effective ones, there is neither interval nor p. Draws are
columns of a matrix; the columns of the values are done in blocks that bound the memory. What was
tried, and what each method did on runs of known truth: METHODS.md.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

from rolecircuits.inputs.arguments import DEFAULT_SEED
from rolecircuits.stats.moments import column_blocks
from rolecircuits.stats.units import (
    ALONE,
    effective_number,
    effective_units,
    is_clustered,
    shared_units,
    strata_of,
)

N_RESAMPLES = 10_000
CONFIDENCE, INNER = 0.95, 0.90
MIN_UNITS, MIN_EFFECTIVE = 8, 5.0
ENOUGH, FINEST = 20, 20  # draws that reach a column; else the smallest p 0.05 / (FINEST * columns)
UNBOUNDED = (-np.inf, np.inf)
SHARE = (0.0, 1.0)  # where a normalised entropy, a mass or a rate lies
FEW = 2**23  # numbers of a set's bootstrap weights, 32 MiB


class Inference(NamedTuple):
    """An estimate with its 95 % interval, p of the null 0, and max-T p of its family.

    error    standard error         inner    half the width of the 90 % interval
    least    [draw] the highest rank from above, 1 the largest, that a column's |t*| has in a draw
    """

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    p_max: np.ndarray
    error: np.ndarray
    inner: np.ndarray
    least: np.ndarray


def untestable_reason(category, unit=None, names=None, what="prompts"):
    """Why there can be no interval or test of these categories (all if None), or None.

    category  [row] str    unit  [row] int, or None: every row alone    what  a row is called
    """
    category = np.asarray(category)
    names = list(dict.fromkeys(category.tolist()) if names is None else names)
    unit = np.full(len(category), ALONE) if unit is None else np.asarray(unit)
    clustered = is_clustered(category, unit)
    n, effective = {}, {}
    for name in names:
        own = unit[category == name]
        n[name] = len(np.unique(own[own >= 0])) + int((own < 0).sum())
        effective[name] = effective_units(own)
    if not n or not min(n.values()):
        return None
    if clustered and min(effective.values()) < MIN_EFFECTIVE:
        name = min(effective, key=effective.get)
        return (
            f"no interval and no test below {MIN_EFFECTIVE:g} effective frames: the prompts of "
            f"{name} begin in {n[name]} ways, worth {effective[name]:.1f}"
        )
    total = len(np.unique(unit[np.isin(category, names)])) if clustered else min(n.values())
    if total >= MIN_UNITS:
        return None
    if clustered:  # they are drawn from one pool
        whose = f"{' and '.join(names)} {'have' if len(names) > 1 else 'has'} {total}"
        return f"no interval and no test below {MIN_UNITS} frames: {whose}"
    name = min(n, key=n.get)
    return f"no interval and no test below {MIN_UNITS} {what}: {name} has {n[name]}"


def is_testable(category, unit=None, names=None):
    """False where `untestable_reason` gives one, or a category has no row."""
    category = np.asarray(category)
    names = list(dict.fromkeys(category.tolist()) if names is None else names)
    there = bool(names) and set(names) <= set(category.tolist())
    return there and untestable_reason(category, unit, names) is None


def bootstrap_counts(category, unit, n_resamples=N_RESAMPLES, seed=DEFAULT_SEED):
    """How often each row is drawn in each resample: [resample, row] float64.

    category  [row] str    unit  [row] int; rows of one go together, -1 alone
    A category keeps its size, unless rows of one category share a unit (`strata_of`).
    """
    rng = np.random.default_rng(seed)
    counts = np.zeros((n_resamples, len(category)))
    for stratum in strata_of(category, unit):
        drawn = _draw_counts(rng, len(stratum), n_resamples)
        places = np.repeat(np.arange(len(stratum)), [len(rows) for rows in stratum])
        counts[:, np.concatenate(stratum)] = drawn[:, places]
    return counts


def _draw_counts(rng, n, n_resamples):
    drawn = rng.integers(n, size=(n_resamples, n)) + n * np.arange(n_resamples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=n_resamples * n)
    return counts.reshape(n_resamples, n).astype(np.float64)


def bootstrap_weights(category, unit, n_resamples, seed):
    """`bootstrap_counts` as [row, 1 + resample] float32, entry 0 the sample itself; kept.

    unit  [row], or None: every row alone. The same draws serve every kind, layer and head of a run.
    """
    unit = [ALONE] * len(category) if unit is None else np.asarray(unit).tolist()
    asked = tuple(np.asarray(category).tolist()), tuple(unit), n_resamples, seed
    kept = _weights_of_few if len(unit) * n_resamples <= FEW else _weights_of_many
    return kept(*asked)


def _make_weights(category, unit, n_resamples, seed):
    weights = draw_weights(bootstrap_counts(category, unit, n_resamples, seed))
    weights.setflags(write=False)
    return weights


# the categories of a run and their pairs; fewer where each takes more memory
_weights_of_few, _weights_of_many = (lru_cache(maxsize=n)(_make_weights) for n in (12, 4))


def draw_weights(counts):
    """Counts [resample, row] as [row, 1 + resample] float32; entry 0 is the sample itself."""
    return np.pad(counts, ((1, 0), (0, 0)), constant_values=1).T.astype(np.float32, order="C")


class Summary:
    """Intervals and p gathered block by block; of the draws only their ranks are kept."""

    def __init__(self, n_columns, n_draws):
        self.n_draws, self.n_ranked = n_draws, int(np.ceil((1 - CONFIDENCE) * n_draws))
        self.ranks = [int(np.ceil((n_draws + 1) * q)) - 1 for q in (CONFIDENCE, INNER)]
        self.estimate, self.error, self.width, self.inner, self.p = np.full((5, n_columns), np.nan)
        self.observed, self.freedom = np.full((2, n_columns), np.nan)
        self.reached = np.zeros(n_columns, dtype=int)
        self.least, self.blocks = np.full(n_draws, n_draws), []

    def add(self, columns, draws, testable, draw_more):
        """One block of columns.

        draws      (estimate [column]; shift and standard error [column, 1 + resample]; freedom
                   [column], the degrees of freedom of the tail)
        testable   False: the estimate alone is kept
        draw_more  function (places of columns in the block, number) -> draws of these columns from
                   other resamples
        """
        estimate, shift, error, freedom = draws
        self.estimate[columns] = estimate
        if not testable:
            return
        constant = np.isfinite(estimate) & (error[:, 0] == 0) & (shift == 0).all(axis=1)
        for field in (self.error, self.width, self.inner):
            field[columns[constant]] = 0.0
        usable = np.flatnonzero(np.isfinite(estimate) & (error[:, 0] > 0))
        if not len(usable):
            return
        t = studentise(shift[usable], error[usable])
        chosen = columns[usable]
        self.error[chosen], self.freedom[chosen] = error[usable, 0], freedom[usable]
        self.observed[chosen] = np.abs(estimate[usable]) / error[usable, 0]
        self.reached[chosen] = (t >= self.observed[chosen, None]).sum(axis=1)
        if max(self.ranks) < t.shape[1]:
            # one rank at a time: numpy is four times as slow with a list of them
            points = [np.partition(t, rank, axis=1)[:, rank] for rank in self.ranks]
            self.width[chosen], self.inner[chosen] = points
        self._rank(t)
        self.blocks.append((columns, draw_more))

    def _rank(self, t):
        """Keep in which draws a column is among its largest; t [column, draw]."""
        top = np.argpartition(t, -self.n_ranked, axis=1)[:, -self.n_ranked :]
        order = np.argsort(-np.take_along_axis(t, top, axis=1), axis=1)
        top = np.take_along_axis(top, order, axis=1)
        np.minimum.at(self.least, top, np.arange(1, self.n_ranked + 1)[None])

    def continue_draws(self):
        """All draws [column]. Columns whose observed |t| fewer than ENOUGH draws reach get more
        (sequential, Besag and Clifford 1991), until one of them would be a p below
        0.05 / (FINEST * family) * k.

        k is the number of such columns: Benjamini-Hochberg compares the k-th smallest of m with
        0.05 k / m. Every block takes the same draws in turn: they are made once.
        """
        total, number = np.full(len(self.p), self.n_draws), 0
        while True:
            few = np.isfinite(self.observed) & (self.reached < ENOUGH)
            few &= total < FINEST / (1 - CONFIDENCE) * len(few) / max(few.sum(), 1)
            if not few.any():
                return total
            number += 1
            for columns, draw_more in self.blocks:
                places = np.flatnonzero(few[columns])
                if not len(places):
                    continue
                _, shift, error, _ = draw_more(places, number)
                t, chosen = studentise(shift, error), columns[places]
                self.reached[chosen] += (t >= self.observed[chosen, None]).sum(axis=1)
                total[chosen] += t.shape[1]

    def _test(self):
        """Fill in p, after all draws that it needs."""
        total, tested = self.continue_draws(), np.isfinite(self.observed)
        reached, total = self.reached[tested], total[tested]
        tail = tail_p(self.observed[tested], self.width[tested], self.freedom[tested])
        seen = (1 + reached) / (1 + total)
        self.p[tested] = np.where(np.isnan(tail), seen, np.fmax(tail, reached / total))

    def finish(self, shape, bounds=UNBOUNDED):
        """The Inference of all columns, each field reshaped to `shape`; intervals clipped."""
        self._test()
        half = np.where(np.isfinite(self.width), self.width, np.nan) * self.error
        inner = np.where(np.isfinite(self.inner), self.inner, np.nan) * self.error
        ends = (np.clip(self.estimate + sign * half, *bounds) for sign in (-1, 1))
        fields = (self.estimate, *ends, self.p, family_p(self.p, self.least), self.error, inner)
        return Inference(*(field.reshape(shape) for field in fields), self.least)


def studentise(shift, error):
    """|shift / error| of every draw but the first, the sample; infinite where undefined."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        t = np.abs(shift[:, 1:] / error[:, 1:])
    t[np.isnan(t)] = np.inf
    return t


def tail_p(observed, width, freedom):
    """P(|T| >= x), T Student's t scaled to pass its 5 % point at `width`; NaN up to there."""
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = observed * stdtrit(freedom, (1 + CONFIDENCE) / 2) / width
    return np.where(observed > width, 2 * stdtr(freedom, -scaled), np.nan)


def tail_freedom(contributions):
    """(sum D^2)^2 / sum D^4 - 1, at least 1: contributions D [unit, column] -> [column].

    About n / 3 for normal values, 1 where a single unit carries the variance.
    """
    squares = np.asarray(contributions, dtype=np.float64) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.fmax(squares.sum(axis=0) ** 2 / (squares**2).sum(axis=0) - 1, 1.0)


def family_p(p, least):
    """1 - (1 - p)^k, k the effective number of tests of the family: [...], NaN stays.

    k is such that 5 % of the draws hold a column as extreme as one test with p = 1 - 0.95^(1/k).
    """
    n, draws = int(np.isfinite(p).sum()), len(least)
    share = np.cumsum(np.bincount(least, minlength=draws + 1)[1:]) / draws
    k = int(np.argmax(share >= 1 - CONFIDENCE)) + 1
    with np.errstate(divide="ignore"):
        tests = np.log1p(-share[k - 1]) / np.log1p(-k / draws) if k < draws else 1.0
        return -np.expm1(np.clip(tests, 1, max(n, 1)) * np.log1p(-p))


def join_families(inferences):
    """max-T p of several Inferences as one family: they must come from the same resamples."""
    least = np.min([one.least for one in inferences], axis=0)
    together = family_p(np.concatenate([np.ravel(one.p) for one in inferences]), least)
    ends = np.cumsum([one.p.size for one in inferences])[:-1]
    parts = zip(np.split(together, ends), inferences, strict=True)
    return [part.reshape(one.p.shape) for part, one in parts]


def infer_difference(a, b, paired=False, n_resamples=N_RESAMPLES, seed=DEFAULT_SEED):
    """Symmetric bootstrap-t Inference of mean(a) - mean(b), each field [...].

    a, b  [row, ...], rows that are units by themselves; paired: row i of both is one pair (frame)
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    values = a - b if paired else np.concatenate([a, b])
    group = np.where(np.arange(len(values)) < len(a), "a", "b")
    flat = values.reshape(len(values), -1)
    sizes = (~np.isnan(flat)).astype(int)
    found = _infer_sums(flat, group, sizes, {"a": 1, "b": -1}, (n_resamples, seed))
    return found.finish(values.shape[1:])


def infer_mean(
    values, category=None, unit=None, bounds=UNBOUNDED, n_resamples=N_RESAMPLES, seed=DEFAULT_SEED
):
    """The same for the mean over rows of several categories, values [row, ...].

    category  [row], or None: all rows are of one; undefined values (NaN) are left out
    unit      [row] as in `bootstrap_counts`, or None: every row alone
    bounds    what the mean cannot leave: its interval is clipped

    The sizes of the categories are fixed, unless rows of a category share units: then they vary
    with the units that are drawn.
    """
    values = np.asarray(values, dtype=np.float64)
    if category is None or (unit is not None and is_clustered(category, unit)):
        category = np.full(len(values), "all")
    sums, sizes, stratum = sum_units(values.reshape(len(values), -1), category, unit)
    found = _infer_sums(sums, stratum, sizes, None, (n_resamples, seed))
    return found.finish(values.shape[1:], bounds)


def _infer_sums(sums, group, sizes, coefficients, draws):
    """Summary of sum_g coefficient_g mean_g, mean_g the units' sums over g by their sizes' sum.

    sums, sizes   [unit, column]; NaN and 0 where a unit has no defined value    group  [unit]
    coefficients  {group: number}, or None: the group's share of all rows    draws  (number, seed)
    """
    n_resamples, seed = draws
    out = Summary(sums.shape[1], n_resamples)
    for columns, rows in column_blocks(sizes, n_resamples):
        size = sizes[rows, columns[0]].astype(np.float32)
        part, own = sums[np.ix_(rows, columns)], group[rows]
        weight = coefficients
        if coefficients is None:
            names = dict.fromkeys(own.tolist())
            weight = {name: size[own == name].sum() / size.sum() for name in names}

        facts = part, own, rows, weight, size

        def draw(chosen, number, facts=facts):
            part, own, rows, weight, size = facts
            weights = bootstrap_weights(group, None, n_resamples, nth_seed(seed, number))[rows]
            return studentised_sum(part[:, chosen], own, weights, weight, size)

        enough = [_is_enough(size[own == name]) for name in weight if name in group]
        out.add(columns, draw(slice(None), 0), bool(enough) and all(enough), draw)
    return out


def nth_seed(seed, number):
    """The seed of the number-th further set of draws; 0 is the first."""
    return seed if number == 0 else (seed, number)


def _is_enough(size):
    """Whether units of these sizes are enough for an interval."""
    return len(size) >= MIN_UNITS and effective_number(size) >= MIN_EFFECTIVE


def sum_units(values, category, unit):
    """What is drawn as one: a frame, a cluster, a matched pair, a prompt alone.

    values   [prompt, column]    category  [prompt]    unit  [prompt], or None: every prompt alone
    returns  sums [unit, column] of the defined values, NaN where a unit has none; sizes
             [unit, column], how many those are; stratum [unit], the categories of the unit
    """
    category, present = np.asarray(category), ~np.isnan(values)
    values = np.where(present, values, 0.0)
    shared = [] if unit is None else shared_units(category, unit)
    alone = np.setdiff1d(np.arange(len(category)), [row for s in shared for u in s for row in u])
    sums, sizes = [values[alone]], [present[alone].astype(int)]
    stratum = category[alone].tolist()
    for units in shared:
        sums.append(values[units].sum(axis=1))
        sizes.append(present[units].sum(axis=1))
        stratum += [" ".join(dict.fromkeys(category[units[0]].tolist()))] * len(units)
    sizes = np.concatenate(sizes)
    return np.where(sizes > 0, np.concatenate(sums), np.nan), sizes, np.array(stratum)


def studentised_sum(values, group, weights, coefficients, size):
    """(estimate, shift, error, freedom) of `_infer_sums`; no value may be undefined.

    values   [unit, column] sums    group, size  [unit]    coefficients  {group: number}
    weights  [unit, 1 + resample] as `draw_weights`
    estimate [column]; shift [column, 1 + resample] float32, estimate* - estimate; error the
             standard error inside the resample, same shape; freedom [column] as `tail_freedom`
    """
    scale = np.abs(values).max(axis=0, initial=0.0)
    scale[scale == 0] = 1.0
    estimate, shift, variance, parts = 0.0, 0.0, 0.0, []
    with np.errstate(divide="ignore", invalid="ignore"):
        for name, coefficient in coefficients.items():
            if not (chosen := group == name).any():
                continue
            weight, k = weights[chosen], size[chosen]
            centre = values[chosen].sum(axis=0) / k.sum()
            part = columns_first((values[chosen] - centre * k[:, None]) / scale)
            parts.append(part.T * (coefficient / k.sum()))
            drawn = k @ weight
            mean = part @ weight / drawn
            estimate, shift = estimate + coefficient * centre, shift + coefficient * mean
            second = (part**2) @ weight / drawn
            if (k == 1).all():
                square = (second - mean**2) / (drawn - 1)
            else:  # a ratio of two sums (Cochran 1977, ch. 6): weight * (part - mean * size)^2
                n = weight.sum(axis=0)
                square = second - 2 * mean * ((part * k) @ weight) / drawn
                square = (square + mean**2 * (k**2 @ weight) / drawn) / drawn * n / (n - 1)
            variance = variance + coefficient**2 * square
    unit = np.float32(scale)[:, None]
    error = np.sqrt(np.maximum(variance, 0)) * unit
    return estimate, shift * unit, error, tail_freedom(np.concatenate(parts))


def columns_first(values):
    """[row, column] as contiguous [column, row] float32: the left side of the products."""
    return np.ascontiguousarray(values.T, dtype=np.float32)
