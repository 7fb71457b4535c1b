"""Intervals and p-values over prompts or frames; heads and query rows are never the unit.

    bootstrap  units (stats.units) are drawn with replacement: the frames of a crossed set, else
               prompts within each category, a pair (confounder[i], third_person[i]) together; two
               runs of a comparison use the same draw
    interval   estimate -+ c * error, c the 95 % point of |estimate* - estimate| / error* over the
               draws, error* recomputed in every draw (symmetric bootstrap-t, Hall 1988). The
               percentile interval is too short at n = 30.
    p          (b + 1) / (m + 1), the observed sample counted (Phipson and Smyth 2010)
    p_max      max-T: b counts the draws whose largest |t| over all layers or heads reaches this
               one's (Westfall and Young 1993): the chance of a single false finding in the whole
               family stays below p_max

Draws are columns of a matrix, so that 10,000 of them are a few matrix products; the columns of the
values are done in blocks that bound the memory. Heads of a layer share the same prompts, so their
spread says nothing about new ones. What each method did on simulated runs: METHODS.md.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from rolecircuits.inputs.arguments import DEFAULT_SEED
from rolecircuits.stats.indices import INDEX_CATEGORIES, INDICES, index_values
from rolecircuits.stats.moments import category_mean, column_blocks
from rolecircuits.stats.units import matched_rows, shared_units, strata_of

N_RESAMPLES = 10_000
CONFIDENCE = 0.95
MIN_PROMPTS = 3
NUMERATORS = {"rfc": {"self_referent": -1.0}, "rsi": {"confounder": 1.0, "self_referent": -1.0}}


class Inference(NamedTuple):
    """An estimate with its 95 % interval, p of the null 0, and max-T p of its family."""

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    p_max: np.ndarray


def missing_prompts_reason(category, what="prompts"):
    """Why there can be no interval or test, or None if every category has MIN_PROMPTS rows.

    what  the rows are: prompts, or frames
    """
    names, n = np.unique(np.asarray(category), return_counts=True)
    if not len(n) or n.min() >= MIN_PROMPTS:
        return None
    short = f"{names[np.argmin(n)]} has {n.min()}"
    return f"intervals and tests need at least {MIN_PROMPTS} {what} a category; {short}"


def bootstrap_counts(category, unit, n_resamples=N_RESAMPLES, seed=DEFAULT_SEED):
    """How often each row is drawn in each resample: [resample, row] float64.

    category  [row] str; each keeps its size    unit  [row] int; rows of one go together, -1 alone
    """
    rng = np.random.default_rng(seed)
    counts = np.zeros((n_resamples, len(category)))
    for stratum in strata_of(category, unit):
        counts[:, stratum] = _draw_counts(rng, stratum.shape[1], n_resamples)[:, None]
    return counts


def _draw_counts(rng, n, n_resamples):
    drawn = rng.integers(n, size=(n_resamples, n)) + n * np.arange(n_resamples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=n_resamples * n)
    return counts.reshape(n_resamples, n).astype(np.float64)


def bootstrap_weights(category, unit, n_resamples, seed):
    """`bootstrap_counts` as [row, 1 + resample] float32, entry 0 the sample itself; kept.

    unit  [row], or None: every row alone. The same draws serve every kind, layer and head of a run.
    """
    unit = [-1] * len(category) if unit is None else np.asarray(unit).tolist()
    return _kept_weights(tuple(np.asarray(category).tolist()), tuple(unit), n_resamples, seed)


@lru_cache(maxsize=8)
def _kept_weights(category, unit, n_resamples, seed):
    weights = draw_weights(bootstrap_counts(category, unit, n_resamples, seed))
    weights.setflags(write=False)
    return weights


def draw_weights(counts):
    """Counts [resample, row] as [row, 1 + resample] float32; entry 0 is the sample itself."""
    return np.pad(counts, ((1, 0), (0, 0)), constant_values=1).T.astype(np.float32, order="C")


def infer_indices(
    values, category, unit=None, base=None, n_resamples=N_RESAMPLES, seed=DEFAULT_SEED
):
    """RFC and RSI of a run, or their difference to a `base` run of the same prompts.

    values, base  [row, ...]; a row undefined (NaN) in either is left out of both, by column, and
                  takes the rest of its frame along
    category      [row] str    unit  [row] int as in `bootstrap_counts`, or None: every row alone
    returns       {"rfc": Inference, "rsi": Inference}
    p, p_max      of the null 0: index = 0, or index(values) = index(base). The runs may differ in
                  scale: each index is a ratio inside its own run, each draw has its own error.

    The standard error is the delta method's: for RFC = 1 - H_s / H_n it is that of
    mean_s(x / H_n) - (H_s / H_n) mean_n(x / H_n), with the covariance of the two where categories
    share their units.
    """
    category, runs, crossed = _prepare_runs(values, category, unit, base)
    weights = bootstrap_weights(category, unit, n_resamples, seed)
    out = {index: _Summary(runs[0].shape[1], n_resamples) for index in INDICES}
    for columns, rows in column_blocks(~np.isnan(sum(runs)), n_resamples):
        parts = [run[np.ix_(rows, columns)] for run in runs]
        draws_of = studentised_indices(parts, category[rows], weights[rows], crossed)
        for index, draws in draws_of.items():
            out[index].add(columns, *draws)
    return {index: summary.finish(np.shape(values)[1:]) for index, summary in out.items()}


def infer_mean_indices(
    values, category, unit=None, base=None, n_resamples=N_RESAMPLES, seed=DEFAULT_SEED
):
    """The same for the mean of an index over layers, one number each; values, base [row, layer].

    Layers in which the index is undefined are left out.
    """
    category, runs, crossed = _prepare_runs(values, category, unit, base)
    weights = bootstrap_weights(category, unit, n_resamples, seed)
    missing, out = np.isnan(sum(runs)), {}
    runs = [np.where(missing, np.nan, run) for run in runs]
    indices = [index_values(run, category) for run in runs]
    for index in INDICES:
        layers = np.flatnonzero(np.isfinite(sum(values[index] for values in indices)))
        summary = _Summary(1, n_resamples)
        if len(layers):
            means = [values[index][layers].mean() for values in indices]
            estimate = means[0] - means[1] if len(means) == 2 else means[0]
            parts = [run[:, layers] for run in runs]
            draws = _mean_draws(index, parts, category, weights, crossed)
            summary.add(np.array([0]), np.array([estimate]), *draws)
        out[index] = summary.finish(())
    return out


def _mean_draws(index, runs, category, weights, crossed):
    """(shift, standard error) of the mean over layers in every resample, each [1, 1 + resample].

    Layers are no samples: each unit's contributions are summed over the layers first.
    """
    missing = np.isnan(runs[0])
    used = [~missing.all(axis=1) & (category == name) for name in (*NUMERATORS[index], "neutral")]
    size = {category[rows][0]: weights[rows].sum(axis=0) for rows in used}
    shift, linear = np.zeros(weights.shape[1]), np.zeros(weights.shape, dtype=np.float32)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for layers, rows in column_blocks(~missing, weights.shape[1]):
            parts = [run[np.ix_(rows, layers)] for run in runs]
            sample = _Sample(parts, category[rows], weights[rows], crossed)
            _, moved, slopes = sample.index_draws(index)
            shift += moved.sum(axis=0)
            for name, slope in slopes.items():
                chosen = rows[category[rows] == name]
                whole = size[name] / weights[chosen].sum(axis=0)
                linear[chosen] += whole * sample.contributions(name, slope)
        variance, groups = 0.0, list(zip(used, size.values(), strict=True))
        if crossed:  # the categories of a frame add up before they are squared
            linear[used[0]] += sum(linear[rows] for rows in used[1:])
            groups = groups[:1]
        for rows, n in groups:
            variance += (weights[rows] * linear[rows] ** 2).sum(axis=0) / n / (n - 1)
        return shift[None] / len(missing.T), np.sqrt(variance)[None] / len(missing.T)


def _prepare_runs(values, category, unit, base):
    """(category, [values] or [values, base] as [row, column] float64, crossed).

    crossed  the categories of the indices have the same units, row by row; then an undefined value
             makes its whole unit undefined
    """
    runs = [values] if base is None else [values, base]
    runs = [np.array(run, dtype=np.float64).reshape(len(run), -1) for run in runs]
    category = np.asarray(category)
    names = [name for name in INDEX_CATEGORIES if (category == name).any()]
    if unit is None or len(names) < 2 or matched_rows(category, unit, names) is None:
        return category, runs, False
    sides = [np.flatnonzero(category == name) for name in names]
    if any((np.asarray(unit)[side] != np.asarray(unit)[sides[0]]).any() for side in sides):
        raise ValueError("the rows of every category must be in the same order of units")
    missing = np.any([np.isnan(sum(runs))[side] for side in sides], axis=0)
    for run in runs:
        for side in sides:
            run[side] = np.where(missing, np.nan, run[side])
    return category, runs, True


def studentised_indices(runs, category, weights, crossed=False):
    """RFC and RSI in every resample: {index: (estimate, shift, error)}; no value may be undefined.

    runs      one run [row, column], or two: then of runs[0] - runs[1]
    weights   [row, 1 + resample] float32    how often each row is drawn, as `draw_weights`
    crossed   the categories share their units, row by row: their means covary
    estimate  [column] float64
    shift     [column, 1 + resample] float32    index* - index
    error     [column, 1 + resample] float32    delta-method standard error inside the resample
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        sample, draws = _Sample(runs, category, weights, crossed), {}
        for index in INDICES:
            estimate, shift, slopes = sample.index_draws(index)
            error = np.sqrt(np.maximum(sample.variance(slopes), 0)) if slopes else shift
            draws[index] = estimate, shift, error
        return draws


class _Sample:
    """Values of one or two runs [prompt, column] in units of H_neutral, and their resamples.

    centres  {category: the mean of each run [column]}, and for the categories that are present:
    weights  {category: [prompt, 1 + resample]}
    parts    {category: the values of each run around their centre [column, prompt] float32}
    means    {category: the means of those of each run in every resample [column, 1 + resample]}
    """

    def __init__(self, runs, category, weights, crossed):
        self.runs, self.category, self.crossed = runs, category, crossed
        units = [run / category_mean(run, category, "neutral") for run in runs]
        self.centres, self.weights, self.parts, self.means, self._covariances = {}, {}, {}, {}, {}
        for name in INDEX_CATEGORIES:
            rows = category == name
            self.centres[name] = [category_mean(unit, category, name) for unit in units]
            if rows.any():
                centred = zip(units, self.centres[name], strict=True)
                self.parts[name] = [columns_first((unit - c)[rows]) for unit, c in centred]
                weight = self.weights[name] = weights[rows]
                size = weight.sum(axis=0)
                self.means[name] = [part @ weight / size for part in self.parts[name]]

    def index_draws(self, index):
        """(estimate [column], shift [column, 1 + resample], {category: slopes of each run}).

        In units of H_neutral an index is a constant + sum_c a_c H_c / H_neutral, a_c in NUMERATORS.
        """
        numerator, means = NUMERATORS[index], self.means
        estimates = [index_values(run, self.category)[index] for run in self.runs]
        estimate = estimates[0] - estimates[1] if len(estimates) == 2 else estimates[0]
        if not {*numerator, "neutral"} <= means.keys():
            return estimate, np.full((len(estimate), 1), np.nan, dtype=np.float32), {}
        shift, slopes = 0.0, {name: [] for name in (*numerator, "neutral")}
        for r, sign in enumerate((1, -1)[: len(self.runs)]):
            neutral = 1 + means["neutral"][r]
            ratio = sum(a * self.centres[name][r] for name, a in numerator.items())
            ratio = np.float32(ratio)[:, None]
            moved = sum(np.float32(a) * means[name][r] for name, a in numerator.items())
            moved = (moved - ratio * means["neutral"][r]) / neutral
            shift = shift + sign * moved
            for name, a in numerator.items():
                slopes[name].append(np.float32(sign * a) / neutral)
            slopes["neutral"].append(-sign * (ratio + moved) / neutral)
        return estimate, shift, slopes

    def variance(self, slopes):
        """Variance of the index in every resample: [column, 1 + resample]."""
        total = 0.0
        terms = [(name, r) for name, of_runs in slopes.items() for r in range(len(of_runs))]
        for i, (name, r) in enumerate(terms):
            for other, s in terms[: i + 1]:
                if other != name and not self.crossed:
                    continue
                twice = 1 if (name, r) == (other, s) else 2
                product = twice * slopes[other][s] * slopes[name][r]
                total = total + product * self.covariance((name, r), (other, s))
        return total

    def covariance(self, first, second):
        """Covariance of two means, each (category, run), in every resample [column, 1 + resample].

        The categories are one, or share their units.
        """
        key = frozenset((first, second))
        if key not in self._covariances:
            parts = [self.parts[name][r] for name, r in (first, second)]
            means = [self.means[name][r] for name, r in (first, second)]
            weight = self.weights[first[0]]
            size = weight.sum(axis=0)
            product = (parts[0] * parts[1]) @ weight / size
            self._covariances[key] = (product - means[0] * means[1]) / (size - 1)
        return self._covariances[key]

    def contributions(self, name, slopes):
        """What each prompt adds to the index, summed over columns: [prompt, 1 + resample]."""
        total = 0.0
        for part, mean, slope in zip(self.parts[name], self.means[name], slopes, strict=True):
            total = total + (part.T @ slope - (mean * slope).sum(axis=0))
        return total


def columns_first(values):
    """[row, column] as contiguous [column, row] float32: the left side of the products."""
    return np.ascontiguousarray(values.T, dtype=np.float32)


class _Summary:
    """Intervals and p gathered block by block; of the draws only their maximum is kept."""

    def __init__(self, n_columns, n_draws):
        self.rank = int(np.ceil((n_draws + 1) * CONFIDENCE)) - 1
        self.estimate, self.error, self.width, self.p = np.full((4, n_columns), np.nan)
        self.maximum = np.full(n_draws, -np.inf, dtype=np.float32)

    def add(self, columns, estimate, shift, error):
        self.estimate[columns] = estimate
        constant = np.isfinite(estimate) & (error[:, 0] == 0) & (shift == 0).all(axis=1)
        self.error[columns[constant]], self.width[columns[constant]] = 0.0, 0.0
        usable = np.isfinite(estimate) & (error[:, 0] > 0)
        if not usable.any():
            return
        columns, estimate, shift, error = (x[usable] for x in (columns, estimate, shift, error))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            t = np.abs(shift[:, 1:] / error[:, 1:])
        t[np.isnan(t)] = np.inf
        observed = np.abs(estimate) / error[:, 0]
        self.error[columns] = error[:, 0]
        self.p[columns] = (1 + (t >= observed[:, None]).sum(axis=1)) / (1 + t.shape[1])
        np.maximum(self.maximum, t.max(axis=0), out=self.maximum)
        if self.rank < t.shape[1]:
            self.width[columns] = np.partition(t, self.rank, axis=1)[:, self.rank]

    def finish(self, shape):
        """The Inference of all columns, each field reshaped to `shape`."""
        half = np.where(np.isfinite(self.width), self.width, np.nan) * self.error
        observed = np.full(len(self.error), np.nan)
        np.divide(np.abs(self.estimate), self.error, out=observed, where=self.error > 0)
        p_max = family_p(observed, self.maximum)
        fields = (self.estimate, self.estimate - half, self.estimate + half, self.p, p_max)
        return Inference(*(field.reshape(shape) for field in fields))


def family_p(observed, maximum):
    """(1 + how many of the family's maxima reach each observed |t|) / (1 + draws), or NaN."""
    reached = len(maximum) - np.searchsorted(np.sort(maximum), observed)
    return np.where(np.isnan(observed), np.nan, (1 + reached) / (1 + len(maximum)))


def infer_difference(a, b, paired=False, n_resamples=N_RESAMPLES, seed=DEFAULT_SEED):
    """Symmetric bootstrap-t Inference of mean(a) - mean(b), each field [...].

    a, b  [row, ...]; paired: row i of both is one pair (frame), drawn together
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    values = a - b if paired else np.concatenate([a, b])
    group = np.where(np.arange(len(values)) < len(a), "a", "b")
    flat = values.reshape(len(values), -1)
    weights = bootstrap_weights(group, None, n_resamples, seed)
    out = _Summary(flat.shape[1], n_resamples)
    for columns, rows in column_blocks(~np.isnan(flat), n_resamples):
        part = flat[np.ix_(rows, columns)]
        out.add(columns, *studentised_difference(part, group[rows], weights[rows]))
    return out.finish(values.shape[1:])


def mean_difference_interval(a, b, paired=False, n_resamples=N_RESAMPLES, seed=DEFAULT_SEED):
    """(estimate, low, high) of `infer_difference`."""
    return infer_difference(a, b, paired, n_resamples, seed)[:3]


def mean_interval(values, n_resamples=N_RESAMPLES, seed=DEFAULT_SEED):
    """The same for a mean over prompts, values [prompt, ...]."""
    return mean_difference_interval(values, np.zeros_like(values), True, n_resamples, seed)


def stratified_mean_interval(
    values, category, unit=None, n_resamples=N_RESAMPLES, seed=DEFAULT_SEED
):
    """The same for the mean over prompts of several categories whose sizes are fixed.

    values  [prompt, column]; undefined values (NaN) are left out    unit  as in `infer_indices`
    """
    sums, sizes, stratum = sum_units(values, category, unit)
    weights = bootstrap_weights(stratum, None, n_resamples, seed)
    out = _Summary(sums.shape[1], n_resamples)
    for columns, rows in column_blocks(sizes, n_resamples):
        size = sizes[rows, columns[0]].astype(np.float32)
        part, group = sums[np.ix_(rows, columns)], stratum[rows]
        names = dict.fromkeys(group.tolist())
        share = {name: size[group == name].sum() / size.sum() for name in names}
        out.add(columns, *_studentised_sum(part, group, weights[rows], share, size))
    return out.finish((sums.shape[1],))[:3]


def sum_units(values, category, unit):
    """What is drawn, or has its sign flipped, as one: a frame, a matched pair, a prompt alone.

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


def studentised_difference(values, group, weights):
    """`studentised_indices` for mean(a) - mean(b), or for mean(a) if all prompts are in group a."""
    return _studentised_sum(values, group, weights, {"a": 1, "b": -1})


def _studentised_sum(values, group, weights, coefficients, size=None):
    """The same for sum_g coefficient_g mean_g, mean_g the values' sum over g by their sizes' sum.

    values  [unit, column]    group, size  [unit]    coefficients  {group: number}
    """
    scale = np.abs(values).max(axis=0, initial=0.0)
    scale[scale == 0] = 1.0
    size = np.ones(len(values), dtype=np.float32) if size is None else size
    estimate, shift, variance = 0.0, 0.0, 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        for name, coefficient in coefficients.items():
            if not (chosen := group == name).any():
                continue
            weight, k = weights[chosen], size[chosen]
            centre = values[chosen].sum(axis=0) / k.sum()
            part = columns_first((values[chosen] - centre * k[:, None]) / scale)
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
    return estimate, shift * unit, np.sqrt(np.maximum(variance, 0)) * unit
