"""RFC and RSI with intervals and tests over units.

    infer_indices        RFC and RSI of a run, or their difference between two runs
    infer_mean_indices   the same for their mean over layers
    Means                what both, and contrasts of clustered prompts, are made of

The standard error is the delta method's. With r_i the residuals around the category's mean and N_c
its prompts, an estimate whose slope in the mean of category c is a_c has the variance

    sum over units g of (sum_c a_c sum_(i in g, c) r_i / N_c)^2  k / (k - 1)       k units

which is the cluster-robust (sandwich) variance where units hold several prompts (Liang and Zeger
1986; Miller 2024, appendix A), that of paired differences in a crossed set, and the usual
sum_c a_c^2 s_c^2 / n_c where every prompt is a unit. It is recomputed in every draw.
"""

import numpy as np

from rolecircuits.inputs.arguments import DEFAULT_SEED
from rolecircuits.stats.indices import INDEX_CATEGORIES, INDICES, index_values
from rolecircuits.stats.moments import category_mean, column_blocks
from rolecircuits.stats.resampling import (
    N_RESAMPLES,
    UNBOUNDED,
    Summary,
    bootstrap_weights,
    columns_first,
    is_testable,
    nth_seed,
    tail_freedom,
)
from rolecircuits.stats.units import ALONE, is_clustered, matched_rows

NUMERATORS = {"rfc": {"self_referent": -1.0}, "rsi": {"confounder": 1.0, "self_referent": -1.0}}
COMPARED = {"rfc": ("neutral", "self_referent"), "rsi": ("confounder", "self_referent")}


def infer_indices(
    values, category, unit=None, base=None, n_resamples=N_RESAMPLES, seed=DEFAULT_SEED
):
    """RFC and RSI of a run, or their difference to a `base` run of the same prompts.

    values, base  [row, ...]; a row undefined (NaN) in either is left out of both, by column, and in
                  a crossed set takes the rest of its frame along
    category      [row] str    unit  [row] int as in `bootstrap_counts`, or None: every row alone
    returns       {"rfc": Inference, "rsi": Inference}
    p, p_max      of the null 0: index = 0, or index(values) = index(base). The runs may differ in
                  scale: each index is a ratio inside its own run, each draw has its own error.
    """
    category, runs, unit, shared = _prepare_runs(values, category, unit, base)
    out = {index: Summary(runs[0].shape[1], n_resamples) for index in INDICES}
    for columns, rows in column_blocks(~np.isnan(sum(runs)), n_resamples):
        parts = [run[np.ix_(rows, columns)] for run in runs]
        own, together = category[rows], unit[rows] if shared else None

        def sample(chosen, number, parts=parts, rows=rows, own=own, together=together):
            weights = bootstrap_weights(category, unit, n_resamples, nth_seed(seed, number))
            return Means([p[:, chosen] for p in parts], own, weights[rows], together)

        first = sample(slice(None), 0)
        for index, summary in out.items():
            enough = is_testable(own, unit[rows], COMPARED[index])

            def more(chosen, number, index=index, sample=sample):
                return sample(chosen, number).index_draws(index)

            summary.add(columns, first.index_draws(index), enough, more)
    shape = np.shape(values)[1:]
    bounds = (-np.inf, 1.0) if base is None else UNBOUNDED
    ends = {"rfc": bounds, "rsi": UNBOUNDED}
    return {index: summary.finish(shape, ends[index]) for index, summary in out.items()}


def infer_mean_indices(
    values, category, unit=None, base=None, n_resamples=N_RESAMPLES, seed=DEFAULT_SEED
):
    """The same for the mean of an index over layers, one number each; values, base [row, layer].

    Layers in which the index is undefined are left out.
    """
    category, runs, unit, shared = _prepare_runs(values, category, unit, base)
    missing, out = np.isnan(sum(runs)), {}
    runs = [np.where(missing, np.nan, run) for run in runs]
    indices = [index_values(run, category) for run in runs]
    for index in INDICES:
        layers = np.flatnonzero(np.isfinite(sum(values[index] for values in indices)))
        summary = Summary(1, n_resamples)
        if len(layers):
            means = [values[index][layers].mean() for values in indices]
            estimate = means[0] - means[1] if len(means) == 2 else means[0]
            parts = [run[:, layers] for run in runs]

            def draw(chosen, number, parts=parts, index=index, estimate=estimate):
                weights = bootstrap_weights(category, unit, n_resamples, nth_seed(seed, number))
                moved = _mean_draws(index, parts, category, weights, unit if shared else None)
                return np.array([estimate]), *moved

            used = ~missing[:, layers].all(axis=1)
            enough = is_testable(category[used], unit[used], COMPARED[index])
            summary.add(np.array([0]), draw(None, 0), enough, draw)
        out[index] = summary.finish(())
    return out


def _mean_draws(index, runs, category, weights, unit):
    """(shift, standard error, both [1, 1 + resample], freedom [1]) of the mean over layers.

    Layers are no samples: each unit's contributions are summed over the layers first.
    unit  [row], or None: every row alone
    """
    missing, n_draws = np.isnan(runs[0]), weights.shape[1]
    places = np.arange(len(category)) if unit is None else np.unique(unit, return_inverse=True)[1]
    shift, linear = np.zeros(n_draws), np.zeros((places.max() + 1, n_draws), dtype=np.float32)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for layers, rows in column_blocks(~missing, n_draws):
            parts = [run[np.ix_(rows, layers)] for run in runs]
            together = None if unit is None else places[rows]
            sample = Means(parts, category[rows], weights[rows], together)
            _, moved, slopes = sample.index_changes(index)
            shift += moved.sum(axis=0)
            for name, slope in slopes.items():
                own = rows[category[rows] == name] if unit is None else sample.units
                linear[own] += sample.contributions(name, slope)
        first = np.unique(places, return_index=True)[1]
        groups = [~missing.all(axis=1)]
        if unit is None:
            groups = [(category == name) & groups[0] for name in (*NUMERATORS[index], "neutral")]
        variance, parts = 0.0, []
        for chosen in groups:
            own = np.unique(places[chosen])
            weight = weights[first[own]]
            k = weight.sum(axis=0)
            parts.append(linear[own, :1])
            variance += (weight * linear[own] ** 2).sum(axis=0) * k / (k - 1)
        error, freedom = np.sqrt(variance)[None], tail_freedom(np.concatenate(parts))
        return shift[None] / len(missing.T), error / len(missing.T), freedom


def _prepare_runs(values, category, unit, base):
    """(category, [values] or [values, base] as [row, column] float64, unit, shared).

    shared  the categories of the indices share their units: the frames of a crossed set, where an
            undefined value makes its whole frame undefined; or clusters
    """
    runs = [values] if base is None else [values, base]
    runs = [np.array(run, dtype=np.float64).reshape(len(run), -1) for run in runs]
    category = np.asarray(category)
    unit = np.full(len(category), ALONE) if unit is None else np.asarray(unit)
    if is_clustered(category, unit):
        return category, runs, unit, True
    names = [name for name in INDEX_CATEGORIES if (category == name).any()]
    if len(names) < 2 or matched_rows(category, unit, names) is None:
        return category, runs, unit, False
    sides = [np.flatnonzero(category == name) for name in names]
    if any((unit[side] != unit[sides[0]]).any() for side in sides):
        raise ValueError("the rows of every category must be in the same order of units")
    missing = np.any([np.isnan(sum(runs))[side] for side in sides], axis=0)
    for run in runs:
        for side in sides:
            run[side] = np.where(missing, np.nan, run[side])
    return category, runs, unit, True


class Means:
    """Means of categories in every resample, for one run or two; no value may be undefined.

    runs      one run [row, column], or two: then indices are those of runs[0] - runs[1]
    weights   [row, 1 + resample] float32    how often each row is drawn, as `draw_weights`
    unit      [row]: the categories share their units, their means covary; None: every row alone
    names     the categories; those of the indices, in units of H_neutral, if None

    units     the units in ascending order
    centres   {category: the mean of each run [column]}, and for the categories that are present:
    sums      {category: the sums of each run around their centre [column, unit] float32}
    counts    {category: rows of every unit [unit]}
    weights   {category: [unit, 1 + resample]}
    means     {category: the means of those of each run in every resample [column, 1 + resample]}
    """

    def __init__(self, runs, category, weights, unit=None, names=None):
        self.runs, self.category = runs, category
        self.shared = unit is not None
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            self._measure(runs, weights, unit, names)

    def _measure(self, runs, weights, unit, names):
        category = self.category
        scaled = runs
        if names is None:
            scaled = [run / category_mean(run, category, "neutral") for run in runs]
        self.centres, self.weights, self.sums, self.counts, self.means = {}, {}, {}, {}, {}
        self._covariances, self.units = {}, None
        if self.shared:
            self.units, first, place = np.unique(unit, return_index=True, return_inverse=True)
            together = weights[first]
        for name in names or INDEX_CATEGORIES:
            rows = category == name
            self.centres[name] = [category_mean(run, category, name) for run in scaled]
            if not rows.any():
                continue
            residuals = [(run - c)[rows] for run, c in zip(scaled, self.centres[name], strict=True)]
            if self.shared:
                member = (place[rows] == np.arange(len(self.units))[:, None]).astype(np.float64)
                self.sums[name] = [columns_first(member @ own) for own in residuals]
                self.counts[name], weight = member.sum(axis=1).astype(np.float32), together
            else:
                self.sums[name] = [columns_first(own) for own in residuals]
                self.counts[name], weight = np.ones(rows.sum(), dtype=np.float32), weights[rows]
            self.weights[name], size = weight, self.counts[name] @ weight
            self.means[name] = [own @ weight / size for own in self.sums[name]]

    def index_draws(self, index):
        """(estimate [column]; shift and standard error [column, 1 + resample]; freedom [column] as
        resampling.tail_freedom) of an index.
        """
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            estimate, shift, slopes = self.index_changes(index)
            return self._studentise(estimate, shift, slopes)

    def draws(self, slopes):
        """The same for sum_c slope_c mean_c of the first run; slopes {category: number}."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            estimate, shift = sum(a * self.centres[name][0] for name, a in slopes.items()), 0.0
            given = {name: [np.full((1, 1), a, np.float32)] for name, a in slopes.items()}
            if not slopes.keys() <= self.means.keys():
                given, shift = {}, np.full((len(estimate), 1), np.nan, dtype=np.float32)
            for name in given:
                shift = shift + np.float32(slopes[name]) * self.means[name][0]
            return self._studentise(estimate, shift, given)

    def _studentise(self, estimate, shift, slopes):
        if not slopes:
            return estimate, shift, shift, np.full(len(estimate), np.nan)
        parts = []
        for name, of_runs in slopes.items():
            pairs = zip(of_runs, self.sums[name], strict=True)
            parts.append(sum(a[:, :1] * own for a, own in pairs) / self.counts[name].sum())
        parts = sum(parts) if self.shared else np.concatenate(parts, axis=1)
        error = np.sqrt(np.maximum(self.variance(slopes), 0))
        return estimate, shift, error, tail_freedom(parts.T)

    def index_changes(self, index):
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
        """Variance of sum slope mean in every resample: [column, 1 + resample]."""
        total = 0.0
        terms = [(name, r) for name, of_runs in slopes.items() for r in range(len(of_runs))]
        for i, (name, r) in enumerate(terms):
            for other, s in terms[: i + 1]:
                if other != name and not self.shared:
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
            weight = self.weights[first[0]]
            (x, n, mean), (y, m, other) = (
                (self.sums[name][r], self.counts[name], self.means[name][r])
                for name, r in (first, second)
            )
            k, sizes = weight.sum(axis=0), (n @ weight) * (m @ weight)
            product = (x * y) @ weight
            if (n == 1).all() and (m == 1).all():
                product -= k * mean * other
            else:
                product -= other * ((x * m) @ weight) + mean * ((y * n) @ weight)
                product += mean * other * ((n * m) @ weight)
            self._covariances[key] = product * (k / (k - 1) / sizes)
        return self._covariances[key]

    def contributions(self, name, slopes):
        """What each unit adds to an estimate, summed over columns: [unit, 1 + resample]."""
        total, count = 0.0, self.counts[name][:, None]
        for own, mean, slope in zip(self.sums[name], self.means[name], slopes, strict=True):
            total = total + (own.T @ slope - count * (mean * slope).sum(axis=0))
        return total / (self.counts[name] @ self.weights[name])
