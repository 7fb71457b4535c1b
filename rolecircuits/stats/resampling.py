"""Intervals and p-values over prompts: the prompt is the unit, heads and query rows never are.

    bootstrap  prompts are drawn with replacement within each category; a pair (confounder[i],
               third_person[i]) is drawn together; two runs of a comparison use the same draw
    interval   estimate -+ c * error, c the 95 % point of |estimate* - estimate| / error* over the
               draws, error* recomputed in every draw (symmetric bootstrap-t, Hall 1988). The
               percentile interval is too short at n = 30.
    p          (b + 1) / (m + 1), the observed sample counted (Phipson and Smyth 2010)
    p_max      max-T: b counts the draws whose largest |t| over all layers or heads reaches this
               one's (Westfall and Young 1993): the chance of a single false finding in the whole
               family stays below p_max

Draws are columns of a matrix, so that 10,000 of them are a few matrix products; the columns of the
values are done in blocks that bound the memory. Why not over heads, as the original study: heads of
a layer share the same prompts, so their spread says nothing about new ones. What each method did on
simulated runs: METHODS.md and benchmarks/calibration.py.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from rolecircuits.inputs.arguments import DEFAULT_SEED
from rolecircuits.inputs.categories import PAIRED
from rolecircuits.stats.indices import INDEX_CATEGORIES, INDICES, index_values
from rolecircuits.stats.moments import category_mean

N_RESAMPLES = 10_000
CONFIDENCE = 0.95
MIN_PROMPTS = 3
BLOCK = 2**19  # columns times draws of a block
NUMERATORS = {"rfc": {"self_referent": -1.0}, "rsi": {"confounder": 1.0, "self_referent": -1.0}}


class Inference(NamedTuple):
    """An estimate with its 95 % interval, p of the null 0, and max-T p of its family."""

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    p_max: np.ndarray


def missing_prompts_reason(category):
    """Why there can be no interval or test, or None if every category has MIN_PROMPTS prompts."""
    names, n = np.unique(np.asarray(category), return_counts=True)
    if not len(n) or n.min() >= MIN_PROMPTS:
        return None
    short = f"{names[np.argmin(n)]} has {n.min()}"
    return f"intervals and tests need at least {MIN_PROMPTS} prompts a category; {short}"


def pair_rows(category, pair_id):
    """(confounder rows, third_person rows) of the matched pairs, aligned; None without pairs."""
    category, pair_id = np.asarray(category), np.asarray(pair_id)
    left, right = (np.flatnonzero((category == name) & (pair_id >= 0)) for name in PAIRED)
    if not len(left) or sorted(pair_id[left]) != sorted(pair_id[right]):
        return None
    return tuple(side[np.argsort(pair_id[side], kind="stable")] for side in (left, right))


def bootstrap_counts(category, pair_id, n_resamples=N_RESAMPLES, seed=DEFAULT_SEED):
    """How often each prompt is drawn in each resample: [resample, prompt] float64.

    category  [prompt] str; each keeps its size    pair_id  [prompt] int, -1 without a partner
    """
    category = np.asarray(category)
    rng = np.random.default_rng(seed)
    counts = np.zeros((n_resamples, len(category)))
    alone = np.ones(len(category), dtype=bool)
    pairs = pair_rows(category, pair_id)
    if pairs is not None:
        drawn = _draw_counts(rng, len(pairs[0]), n_resamples)
        for side in pairs:
            counts[:, side] = drawn
            alone[side] = False
    for name in dict.fromkeys(category):
        rows = np.flatnonzero((category == name) & alone)
        if len(rows):
            counts[:, rows] = _draw_counts(rng, len(rows), n_resamples)
    return counts


def _draw_counts(rng, n, n_resamples):
    drawn = rng.integers(n, size=(n_resamples, n)) + n * np.arange(n_resamples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=n_resamples * n)
    return counts.reshape(n_resamples, n).astype(np.float64)


def bootstrap_weights(category, pair_id, n_resamples, seed):
    """`bootstrap_counts` as [prompt, 1 + resample] float32, entry 0 the sample itself; kept.

    pair_id  [prompt], or None: no pairs. The same draws serve every kind, layer and head of a run.
    """
    pair_id = [-1] * len(category) if pair_id is None else np.asarray(pair_id).tolist()
    return _kept_weights(tuple(np.asarray(category).tolist()), tuple(pair_id), n_resamples, seed)


@lru_cache(maxsize=8)
def _kept_weights(category, pair_id, n_resamples, seed):
    weights = draw_weights(bootstrap_counts(category, pair_id, n_resamples, seed))
    weights.setflags(write=False)
    return weights


def draw_weights(counts):
    """Counts [resample, prompt] as [prompt, 1 + resample] float32; entry 0 is the sample itself."""
    whole = np.ones((1, counts.shape[1]))
    return np.concatenate([whole, counts]).T.astype(np.float32, order="C")


def infer_indices(
    values, category, pair_id=None, base=None, n_resamples=N_RESAMPLES, seed=DEFAULT_SEED
):
    """RFC and RSI of a run, or their difference to a `base` run of the same prompts.

    values, base  [prompt, ...]; a prompt undefined (NaN) in either is left out of both, by column
    category      [prompt] str    pair_id  [prompt] int, or None: no pairs
    returns       {"rfc": Inference, "rsi": Inference}
    p, p_max      of the null 0: index = 0, or index(values) = index(base). The runs may differ in
                  scale: each index is a ratio inside its own run, each draw has its own error.

    The standard error is the delta method's: for RFC = 1 - H_s / H_n it is that of
    mean_s(x / H_n) - (H_s / H_n) mean_n(x / H_n).
    """
    category, runs = np.asarray(category), _flat_runs(values, base)
    weights = bootstrap_weights(category, pair_id, n_resamples, seed)
    out = {index: _Summary(runs[0].shape[1], n_resamples) for index in INDICES}
    for columns, rows in column_blocks(~np.isnan(sum(runs)), n_resamples):
        parts = [run[np.ix_(rows, columns)] for run in runs]
        for index, draws in studentised_indices(parts, category[rows], weights[rows]).items():
            out[index].add(columns, *draws)
    return {index: summary.finish(np.shape(values)[1:]) for index, summary in out.items()}


def infer_mean_indices(
    values, category, pair_id=None, base=None, n_resamples=N_RESAMPLES, seed=DEFAULT_SEED
):
    """The same for the mean of an index over layers, one number each; values, base [prompt, layer].

    Layers in which the index is undefined are left out.
    """
    category, runs = np.asarray(category), _flat_runs(values, base)
    weights = bootstrap_weights(category, pair_id, n_resamples, seed)
    missing, out = np.isnan(sum(runs)), {}
    runs = [np.where(missing, np.nan, run) for run in runs]
    indices = [index_values(run, category) for run in runs]
    for index in INDICES:
        layers = np.flatnonzero(np.isfinite(sum(values[index] for values in indices)))
        summary = _Summary(1, n_resamples)
        if len(layers):
            means = [values[index][layers].mean() for values in indices]
            estimate = means[0] - means[1] if len(means) == 2 else means[0]
            draws = _mean_draws(index, [run[:, layers] for run in runs], category, weights)
            summary.add(np.array([0]), np.array([estimate]), *draws)
        out[index] = summary.finish(())
    return out


def _mean_draws(index, runs, category, weights):
    """(shift, standard error) of the mean over layers in every resample, each [1, 1 + resample].

    Layers are no samples: each prompt's contributions are summed over the layers first.
    """
    missing = np.isnan(runs[0])
    used = [~missing.all(axis=1) & (category == name) for name in (*NUMERATORS[index], "neutral")]
    size = {category[rows][0]: weights[rows].sum(axis=0) for rows in used}
    shift, linear = np.zeros(weights.shape[1]), np.zeros(weights.shape, dtype=np.float32)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for layers, rows in column_blocks(~missing, weights.shape[1]):
            parts = [run[np.ix_(rows, layers)] for run in runs]
            sample = _Sample(parts, category[rows], weights[rows])
            _, moved, slopes = sample.index_draws(index)
            shift += moved.sum(axis=0)
            for name, slope in slopes.items():
                chosen = rows[category[rows] == name]
                whole = size[name] / weights[chosen].sum(axis=0)
                linear[chosen] += whole * sample.contributions(name, slope)
        variance = 0.0
        for rows, n in zip(used, size.values(), strict=True):
            variance += (weights[rows] * linear[rows] ** 2).sum(axis=0) / n / (n - 1)
        return shift[None] / len(missing.T), np.sqrt(variance)[None] / len(missing.T)


def _flat_runs(values, base):
    """[values] or [values, base], each [prompt, column] float64."""
    runs = [values] if base is None else [values, base]
    return [np.asarray(run, dtype=np.float64).reshape(len(run), -1) for run in runs]


def studentised_indices(runs, category, weights):
    """RFC and RSI in every resample: {index: (estimate, shift, error)}; no value may be undefined.

    runs      one run [prompt, column], or two: then of runs[0] - runs[1]
    weights   [prompt, 1 + resample] float32    how often each prompt is drawn, as `draw_weights`
    estimate  [column] float64
    shift     [column, 1 + resample] float32    index* - index
    error     [column, 1 + resample] float32    delta-method standard error inside the resample
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        sample, draws = _Sample(runs, category, weights), {}
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

    def __init__(self, runs, category, weights):
        self.runs, self.category = runs, category
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
        for name, slope in slopes.items():
            for (r, s), covariance in self.covariances(name).items():
                total = total + (1 if r == s else 2) * slope[r] * slope[s] * covariance
        return total

    def covariances(self, name):
        """{(run, run): covariances of the means of a category [column, 1 + resample]}."""
        if name not in self._covariances:
            weight, parts, means = self.weights[name], self.parts[name], self.means[name]
            size, covariances = weight.sum(axis=0), {}
            for r, left in enumerate(parts):
                for s in range(r + 1):
                    second = (left * parts[s]) @ weight / size
                    covariances[s, r] = (second - means[r] * means[s]) / (size - 1)
            self._covariances[name] = covariances
        return self._covariances[name]

    def contributions(self, name, slopes):
        """What each prompt adds to the index, summed over columns: [prompt, 1 + resample]."""
        total = 0.0
        for part, mean, slope in zip(self.parts[name], self.means[name], slopes, strict=True):
            total = total + (part.T @ slope - (mean * slope).sum(axis=0))
        return total


def columns_first(values):
    """[prompt, column] as contiguous [column, prompt] float32: the left side of the products."""
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


def column_blocks(present, n_draws):
    """(columns, rows): columns that have the same rows, few enough for the memory of their draws.

    present  [row, column]; 0 or False: undefined. Columns of a block are equal in it.
    """
    if (present == present[:, :1]).all():
        patterns, member = present[:, :1].T, np.zeros(present.shape[1], dtype=int)
    else:
        patterns, member = np.unique(present.T, axis=0, return_inverse=True)
    step = max(1, BLOCK // (n_draws + 1))
    for i, pattern in enumerate(patterns):
        columns, rows = np.flatnonzero(member.ravel() == i), np.flatnonzero(pattern)
        for start in range(0, len(columns) if len(rows) else 0, step):
            yield columns[start : start + step], rows


def mean_difference_interval(a, b, paired=False, n_resamples=N_RESAMPLES, seed=DEFAULT_SEED):
    """Symmetric bootstrap-t interval of mean(a) - mean(b): (estimate, low, high), each [...].

    a, b  [prompt, ...]; paired: row i of both is one pair, drawn together
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
    return out.finish(values.shape[1:])[:3]


def mean_interval(values, n_resamples=N_RESAMPLES, seed=DEFAULT_SEED):
    """The same for a mean over prompts, values [prompt, ...]."""
    return mean_difference_interval(values, np.zeros_like(values), True, n_resamples, seed)


def stratified_mean_interval(
    values, category, pair_id=None, n_resamples=N_RESAMPLES, seed=DEFAULT_SEED
):
    """The same for the mean over prompts of several categories whose sizes are fixed.

    values  [prompt, column]; undefined values (NaN) are left out    pair_id  as in `infer_indices`
    """
    sums, sizes, stratum = pair_units(values, category, pair_id)
    weights = bootstrap_weights(stratum, None, n_resamples, seed)
    out = _Summary(sums.shape[1], n_resamples)
    for columns, rows in column_blocks(sizes, n_resamples):
        size = sizes[rows, columns[0]].astype(np.float32)
        part, group = sums[np.ix_(rows, columns)], stratum[rows]
        names = dict.fromkeys(group.tolist())
        share = {name: size[group == name].sum() / size.sum() for name in names}
        out.add(columns, *_studentised_sum(part, group, weights[rows], share, size))
    return out.finish((sums.shape[1],))[:3]


def pair_units(values, category, pair_id):
    """What is drawn, or has its sign flipped, as one: a matched pair, or a prompt without partner.

    values   [prompt, column]    category  [prompt]    pair_id  [prompt], or None: no pairs
    returns  sums [unit, column] of the defined values, NaN where a unit has none; sizes
             [unit, column], how many those are; stratum [unit], the category or "pair"
    """
    category, present = np.asarray(category), ~np.isnan(values)
    values = np.where(present, values, 0.0)
    pairs = None if pair_id is None else pair_rows(category, pair_id)
    left, right = ([], []) if pairs is None else pairs
    alone = np.setdiff1d(np.arange(len(category)), np.concatenate([left, right]))
    sums = np.concatenate([values[alone], values[left] + values[right]])
    sizes = np.concatenate([present[alone].astype(int), present[left].astype(int) + present[right]])
    stratum = np.append(category[alone], ["pair"] * len(left))
    return np.where(sizes > 0, sums, np.nan), sizes, stratum


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
