"""Resampling inference over prompts: the prompt is the unit, heads and query rows never are.

    bootstrap     prompts are drawn with replacement within each category; a pair (confounder[i], third_person[i]) is
                  drawn together; two runs of a comparison use the same draw
    interval      estimate -+ c * error, c the 95 % point of |index* - index| / error* over the draws, error* recomputed
                  in every draw (symmetric bootstrap-t, Hall 1988). The percentile interval is too short at n = 30.
    permutation   labels of two categories shuffled, or the signs of matched differences flipped; the statistic is the
                  t of unequal variances (Janssen 1997), so that unequal spread alone does not reject
    p             (b + 1) / (m + 1), the observed arrangement counted (Phipson and Smyth 2010)
    p_max         max-T: b counts the draws whose largest |t| over all layers or heads reaches this one's (Westfall and
                  Young 1993): the chance of a single false finding in the whole family stays below p_max

Draws are columns of a matrix, so that 10,000 of them are a few matrix products; columns of the values are done in blocks
that bound the memory. Why not over heads, as the original: heads of a layer share the same prompts, so their spread says
nothing about new ones. What each method was seen to do on simulated runs: METHODS.md and benchmarks/calibration.py.
"""

from functools import lru_cache
from itertools import combinations, product
from math import comb
from typing import NamedTuple

import numpy as np

from rolecircuits.inputs.categories import PAIRED
from rolecircuits.stats.indices import INDICES, indices_of_means
from rolecircuits.stats.moments import _defined_moments, category_mean

N_RESAMPLES = 10_000
CONFIDENCE = 0.95
MIN_PROMPTS = 3
BLOCK = 2**19
TIE = 1e-5
TAIL = 0.999
NUMERATORS = {"rfc": {"self_referent": -1.0}, "rsi": {"confounder": 1.0, "self_referent": -1.0}}


class Inference(NamedTuple):
    """An estimate with its 95 % interval, the p-value of the null 0 and the max-T p-value of its family."""

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    p_max: np.ndarray


class Test(NamedTuple):
    """A difference of means, its p-value and the max-T p-value over all columns that were tested together."""

    __test__ = False
    difference: np.ndarray
    p: np.ndarray
    p_max: np.ndarray


def missing_prompts_reason(category):
    """Why no interval or test can be given, in words; None where every category present has MIN_PROMPTS prompts."""
    names, n = np.unique(np.asarray(category), return_counts=True)
    if not len(n) or n.min() >= MIN_PROMPTS:
        return None
    short = names[np.argmin(n)]
    return (
        f"intervals and tests need at least {MIN_PROMPTS} prompts a category; {short} has {n.min()}"
    )


def has_enough_prompts(category):
    """True if every category present has the prompts an interval needs; `missing_prompts_reason` says why not."""
    return missing_prompts_reason(category) is None


def pair_rows(category, pair_id):
    """Rows of the matched pairs, aligned: (confounder rows, third_person rows), or None where there are no pairs."""
    category, pair_id = np.asarray(category), np.asarray(pair_id)
    left, right = (np.flatnonzero((category == name) & (pair_id >= 0)) for name in PAIRED)
    if not len(left) or sorted(pair_id[left]) != sorted(pair_id[right]):
        return None
    return tuple(side[np.argsort(pair_id[side], kind="stable")] for side in (left, right))


def bootstrap_counts(category, pair_id, n_resamples=N_RESAMPLES, seed=0):
    """How often each prompt is drawn in each resample: [resample, prompt] float64; each category keeps its size.

    category  [prompt] str      pair_id  [prompt] int, -1 for prompts without a partner
    """
    category = np.asarray(category)
    rng = np.random.default_rng(seed)
    counts = np.zeros((n_resamples, len(category)))
    paired = np.zeros(len(category), dtype=bool)
    pairs = pair_rows(category, pair_id)
    if pairs is not None:
        drawn = _draw_counts(rng, len(pairs[0]), n_resamples)
        for side in pairs:
            counts[:, side] = drawn
            paired[side] = True
    for name in dict.fromkeys(category):
        alone = np.flatnonzero((category == name) & ~paired)
        if len(alone):
            counts[:, alone] = _draw_counts(rng, len(alone), n_resamples)
    return counts


def _draw_counts(rng, n, n_resamples):
    drawn = rng.integers(n, size=(n_resamples, n)) + n * np.arange(n_resamples)[:, None]
    return (
        np.bincount(drawn.ravel(), minlength=n_resamples * n)
        .reshape(n_resamples, n)
        .astype(np.float64)
    )


def resampled_means(values, category, name, counts):
    """Mean of one category in every resample: values [prompt, ...], counts [resample, prompt] -> [resample, ...].

    Undefined values (NaN) are left out of the mean, as in `role_metrics.category_mean`.
    """
    chosen = np.asarray(category) == name
    part, weight = values[chosen], counts[:, chosen]
    if not chosen.any():
        return np.full((len(counts), *values.shape[1:]), np.nan)
    flat = part.reshape(len(part), -1)
    defined = ~np.isnan(flat)
    if defined.all():
        means = weight @ flat / weight.sum(axis=1, keepdims=True)
    else:
        total, size = weight @ np.where(defined, flat, 0.0), weight @ defined
        means = np.divide(total, size, out=np.full(total.shape, np.nan), where=size > 0)
    return means.reshape(len(counts), *values.shape[1:])


def resampled_indices(values, category, counts):
    """RFC and RSI in every resample: {"rfc": [resample, ...], "rsi": [resample, ...]} from values [prompt, ...]."""
    return indices_of_means(lambda name: resampled_means(values, category, name, counts))


def percentile_interval(draws, confidence=CONFIDENCE):
    """(low, high) over the first axis of [resample, ...]; NaN where a draw is undefined. Too short for small samples."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    return low, high


def infer_indices(
    values,
    category,
    pair_id=None,
    base=None,
    n_resamples=N_RESAMPLES,
    seed=0,
    confidence=CONFIDENCE,
):
    """RFC and RSI of a run, or their differences to a `base` run of the same prompts: {"rfc": Inference, "rsi": ...}.

    values, base  [prompt, ...]   a prompt undefined (NaN) in either run is left out of both, column by column
    category      [prompt] str    pair_id [prompt] int, or None: no pairs
    p, p_max      of the null 0: index = 0, or index(values) = index(base). The runs may differ in scale: each index is
                  a ratio inside its own run, and every draw is divided by its own standard error.

    The standard error is the delta method's: for RFC = 1 - H_s/H_n it is that of mean_s(x/H_n) - (H_s/H_n) mean_n(x/H_n).
    """
    category = np.asarray(category)
    runs = [
        np.asarray(run, dtype=np.float64) for run in ([values] if base is None else [values, base])
    ]
    shape, runs = runs[0].shape[1:], [run.reshape(len(run), -1) for run in runs]
    pair_id = np.full(len(category), -1) if pair_id is None else pair_id
    weights = bootstrap_weights(category, pair_id, n_resamples, seed)
    out = {name: _Summary(runs[0].shape[1], n_resamples, confidence) for name in INDICES}
    for columns, rows in _column_blocks(sum(runs), n_resamples):
        parts = [run[np.ix_(rows, columns)] for run in runs]
        for name, (estimate, shift, error) in studentised_indices(
            parts, category[rows], weights[rows]
        ).items():
            out[name].add(columns, estimate, shift, error)
    return {name: summary.finish(shape) for name, summary in out.items()}


def index_intervals(
    values, category, pair_id=None, n_resamples=N_RESAMPLES, seed=0, confidence=CONFIDENCE
):
    """The interval to report for RFC and RSI: {"rfc": (estimate, low, high), "rsi": ...}, each [...].

    values [prompt, ...]    NaN where a category has too few prompts (`missing_prompts_reason`) or an index is undefined
    """
    found = infer_indices(values, category, pair_id, None, n_resamples, seed, confidence)
    return {name: result[:3] for name, result in found.items()}


def bootstrap_weights(category, pair_id, n_resamples, seed):
    """`draw_weights` of `bootstrap_counts`, read-only: the same draws serve every kind, layer and head of a run."""
    return _kept_weights(
        tuple(np.asarray(category).tolist()), tuple(np.asarray(pair_id).tolist()), n_resamples, seed
    )


@lru_cache(maxsize=4)
def _kept_weights(category, pair_id, n_resamples, seed):
    weights = draw_weights(bootstrap_counts(category, pair_id, n_resamples, seed))
    weights.setflags(write=False)
    return weights


def draw_weights(counts):
    """Counts [resample, prompt] as the right-hand side of the products: [prompt, 1 + resample] float32, entry 0 the sample."""
    return np.concatenate([np.ones((1, counts.shape[1])), counts]).T.astype(np.float32, order="C")


def studentised_indices(runs, category, weights):
    """Estimate, shift and standard error of RFC and RSI in every resample: {index: (estimate, shift, error)}.

    runs      one run [prompt, column], or two: then of runs[0] - runs[1]
    weights   [prompt, 1 + resample] float32   how often each prompt is drawn; entry 0 is the sample itself
    estimate  [column] float64
    shift     [column, 1 + resample] float32   index* - index; entry 0 is the sample itself
    error     [column, 1 + resample] float32   delta-method standard error inside the resample
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scale = [category_mean(run, category, "neutral") for run in runs]
        units = [run / s for run, s in zip(runs, scale, strict=True)]
        means, moments = {}, {}
        for name in ("self_referent", "confounder", "neutral"):
            means[name] = [category_mean(unit, category, name) for unit in units]
            if (chosen := category == name).any():
                centred = [unit - mean for unit, mean in zip(units, means[name], strict=True)]
                moments[name] = _resampled_moments(centred, chosen, weights)
        return {index: _index_draws(index, runs, category, means, moments) for index in INDICES}


def _index_draws(index, runs, category, means, moments):
    """`studentised_indices` of one index. In units of H_neutral: index = constant + D, D = sum_c a_c H_c / H_neutral."""
    numerator = NUMERATORS[index]
    estimates = [
        indices_of_means(lambda name, run=run: category_mean(run, category, name))[index]
        for run in runs
    ]
    estimate = estimates[0] - estimates[1] if len(runs) == 2 else estimates[0]
    if not {*numerator, "neutral"} <= moments.keys():
        nothing = np.full((len(estimate), 1), np.nan, dtype=np.float32)
        return estimate, nothing, nothing
    shift, gradients = 0.0, {name: [] for name in (*numerator, "neutral")}
    for r, sign in enumerate((1, -1)[: len(runs)]):
        neutral = 1 + moments["neutral"][0][r]
        ratio = np.float32(sum(a * means[name][r] for name, a in numerator.items()))[:, None]
        moved = sum(np.float32(a) * moments[name][0][r] for name, a in numerator.items())
        moved = (moved - ratio * moments["neutral"][0][r]) / neutral
        shift = shift + sign * moved
        for name, a in numerator.items():
            gradients[name].append(np.float32(sign * a) / neutral)
        gradients["neutral"].append(-sign * (ratio + moved) / neutral)
    variance = 0.0
    for name, gradient in gradients.items():
        for (r, s), covariance in moments[name][1].items():
            variance = variance + (1 if r == s else 2) * gradient[r] * gradient[s] * covariance
    return estimate, shift, np.sqrt(np.maximum(variance, 0))


def _resampled_moments(centred, chosen, weights):
    """Means and covariances of means of one category in the sample (entry 0) and in every resample.

    centred  one array [prompt, column] a run    returns  [mean [column, 1 + resample], ...], {(run, run): covariance}
    """
    weight = weights[chosen]
    size = weight.sum(axis=0)
    parts = [np.ascontiguousarray(c[chosen].T, dtype=np.float32) for c in centred]
    means = [part @ weight / size for part in parts]
    covariances = {}
    for r, left in enumerate(parts):
        for s in range(r + 1):
            second = (left * parts[s]) @ weight / size
            covariances[s, r] = (second - means[r] * means[s]) / (size - 1)
    return means, covariances


class _Summary:
    """Intervals and p-values gathered block by block; draws are dropped, only their maximum over columns is kept."""

    def __init__(self, n_columns, n_draws, confidence=CONFIDENCE):
        self.rank = int(np.ceil((n_draws + 1) * confidence)) - 1
        self.estimate, self.error, self.width, self.p = (
            np.full(n_columns, np.nan) for _ in range(4)
        )
        self.maximum = np.full(n_draws, -np.inf, dtype=np.float32)

    def add(self, columns, estimate, shift, error):
        self.estimate[columns] = estimate
        constant = np.isfinite(estimate) & (error[:, 0] == 0) & (shift == 0).all(axis=1)
        self.error[columns[constant]], self.width[columns[constant]] = 0.0, 0.0
        usable = np.isfinite(estimate) & (error[:, 0] > 0)
        if not usable.any():
            return
        columns, estimate, shift, error = (
            columns[usable],
            estimate[usable],
            shift[usable],
            error[usable],
        )
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
        half = np.where(np.isfinite(self.width), self.width, np.nan) * self.error
        observed = np.full(len(self.error), np.nan)
        np.divide(np.abs(self.estimate), self.error, out=observed, where=self.error > 0)
        p_max = _family_p(observed, self.maximum)
        found = (self.estimate, self.estimate - half, self.estimate + half, self.p, p_max)
        return Inference(*(x.reshape(shape) for x in found))


def _family_p(observed, maximum):
    """(1 + how many of the family's maxima reach each observed |t|) / (1 + draws); NaN where it is undefined."""
    reached = len(maximum) - np.searchsorted(np.sort(maximum), observed)
    return np.where(np.isnan(observed), np.nan, (1 + reached) / (1 + len(maximum)))


def _column_blocks(flat, n_draws):
    """(columns, rows) so that values [prompt, column] are all defined in a block and block x draws fits in memory."""
    defined = ~np.isnan(flat)
    if defined.all():
        patterns, member = np.ones((1, len(flat)), dtype=bool), np.zeros(flat.shape[1], dtype=int)
    else:
        patterns, member = np.unique(defined.T, axis=0, return_inverse=True)
    step = max(1, BLOCK // (n_draws + 1))
    for i, rows in enumerate(patterns):
        columns = np.flatnonzero(member.ravel() == i)
        for start in range(0, len(columns), step):
            yield columns[start : start + step], np.flatnonzero(rows)


def mean_difference_interval(
    a, b, paired=False, n_resamples=N_RESAMPLES, seed=0, confidence=CONFIDENCE
):
    """Symmetric bootstrap-t interval of mean(a) - mean(b): (estimate, low, high), each [...].

    a, b  [prompt, ...]; paired: row i of both is one pair, drawn together
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    values = a - b if paired else np.concatenate([a, b])
    group = np.where(np.arange(len(values)) < len(a), "a", "b")
    flat = values.reshape(len(values), -1)
    weights = bootstrap_weights(group, np.full(len(group), -1), n_resamples, seed)
    out = _Summary(flat.shape[1], n_resamples, confidence)
    for columns, rows in _column_blocks(flat, n_resamples):
        part = flat[np.ix_(rows, columns)]
        out.add(columns, *_studentised_difference(part, group[rows], weights[rows]))
    return out.finish(values.shape[1:])[:3]


def mean_interval(values, n_resamples=N_RESAMPLES, seed=0, confidence=CONFIDENCE):
    """Symmetric bootstrap-t interval of a mean over prompts: (estimate, low, high), each [...]; values [prompt, ...]."""
    return mean_difference_interval(
        values, np.zeros_like(values), True, n_resamples, seed, confidence
    )


def _studentised_difference(values, group, weights):
    """`studentised_indices` for mean(a) - mean(b), or for mean(a) where all prompts are in group a."""
    scale = np.abs(values).max(axis=0, initial=0.0)
    scale[scale == 0] = 1.0
    estimate, shift, variance = 0.0, 0.0, 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        for name, sign in (("a", 1), ("b", -1)):
            if (chosen := group == name).any():
                centre = category_mean(values, group, name)
                (mean,), moments = _resampled_moments([(values - centre) / scale], chosen, weights)
                estimate, shift = estimate + sign * centre, shift + sign * mean
                variance = variance + moments[0, 0]
    unit = np.float32(scale)[:, None]
    return estimate, shift * unit, np.sqrt(np.maximum(variance, 0)) * unit


def permutation_test(a, b, n_permutations=N_RESAMPLES, seed=0):
    """Two categories with equal means? Labels shuffled, Welch's t: Test(difference [...], p, p_max).

    a, b  [prompt, ...], undefined values (NaN) left out. All labellings are enumerated where there are few of them.
    p is NaN where a group has fewer than two defined values or nothing varies.

    For p_max each column's |t| is divided by how much further its own bootstrap-t reaches than its permutations at their
    99.9 % points, if further (balanced, after Beran 1988). Categories that differ in the shape of a skewed column are not
    exchangeable: without the division 8 % of families of 270 heads hold a false finding, with it less than 5 %.
    """
    values = np.concatenate([np.asarray(a, np.float64), np.asarray(b, np.float64)])
    if not len(a) or not len(b):
        return Test(*np.full((3, *values.shape[1:]), np.nan))
    labels = _draw_labels(len(a), len(b), n_permutations, seed)
    group = np.where(np.arange(len(values)) < len(a), "a", "b")
    weights = None
    if labels.shape[1] == n_permutations + 1:
        weights = bootstrap_weights(group, np.full(len(group), -1), n_permutations, seed)
    difference = _defined_moments(a)[1] - _defined_moments(b)[1]
    return _permute(values, labels, _welch_t, difference, group, weights)


def sign_flip_test(differences, n_permutations=N_RESAMPLES, seed=0):
    """Matched differences with mean zero? Signs flipped at random: Test(mean difference [...], p, p_max).

    differences  [pair, ...], undefined values (NaN) left out. All sign patterns are enumerated where there are few.
    """
    differences = np.asarray(differences, dtype=np.float64)
    signs = _draw_signs(len(differences), n_permutations, seed)
    return _permute(differences, signs, _paired_t, _defined_moments(differences)[1])


def _draw_labels(n_a, n_b, n_permutations, seed):
    """[prompt, permutation] float32, 1 for group a; column 0 is the observed labelling."""
    n = n_a + n_b
    if comb(n, n_a) <= n_permutations:
        groups = np.array(list(combinations(range(n), n_a)), dtype=int).reshape(-1, n_a)
    else:
        shuffled = np.random.default_rng(seed).random((n_permutations, n)).argsort(axis=1)[:, :n_a]
        groups = np.concatenate([np.arange(n_a)[None], shuffled])
    labels = np.zeros((n, len(groups)), dtype=np.float32)
    labels[groups.T, np.arange(len(groups))] = 1
    return labels


def _draw_signs(n, n_permutations, seed):
    """[pair, permutation] float32 of -1 and +1; column 0 is the observed one, all +1."""
    if 2**n <= n_permutations:
        return np.array(list(product((1, -1), repeat=n)), dtype=np.float32).T
    signs = np.random.default_rng(seed).choice(np.float32([-1, 1]), size=(n, n_permutations + 1))
    signs[:, 0] = 1
    return signs


def _permute(values, arrangements, statistic, difference, group=None, weights=None):
    """p-values of |statistic|, entry 0 being the observed arrangement, one by one and against the family's maximum."""
    flat = values.reshape(len(values), -1)
    observed, p = np.full((2, flat.shape[1]), np.nan)
    maximum = np.full(arrangements.shape[1], -np.inf, dtype=np.float32)
    for columns, rows in _column_blocks(flat, arrangements.shape[1]):
        part = flat[np.ix_(rows, columns)]
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.abs(statistic(part.T, arrangements[rows]))
        tested = ~np.isnan(t[:, 0])
        columns, t = columns[tested], t[tested]
        if not len(columns):
            continue
        reached = t[:, 0] * np.float32(1 - TIE)
        p[columns] = (t >= reached[:, None]).mean(axis=1)
        maximum = np.fmax(maximum, np.fmax.reduce(t, axis=0))
        if weights is not None:
            _, shift, error = _studentised_difference(part[:, tested], group[rows], weights[rows])
            reached = reached / _tail_ratio(shift, error, t)
        observed[columns] = reached
    p_max = _family_p(observed, maximum[1:])
    return Test(difference, *(x.reshape(values.shape[1:]) for x in (p, p_max)))


def _tail_ratio(shift, error, permuted):
    """How much further the bootstrap-t reaches than the permutations at the 99.9 % point, at least 1: [column]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        own = np.abs(shift[:, 1:] / error[:, 1:])
    own[np.isnan(own)] = np.inf
    rank = int(np.ceil(TAIL * own.shape[1])) - 1
    with np.errstate(invalid="ignore"):
        ratio = (
            np.partition(own, rank, axis=1)[:, rank] / np.partition(permuted, rank, axis=1)[:, rank]
        )
    return np.fmax(1, ratio)


def _welch_t(values, labels):
    """Welch's t of every labelling: values [column, prompt], labels [prompt, permutation] -> [column, permutation]."""
    values = values - values[:, :1]
    values = values - values.mean(axis=1, keepdims=True)
    values = (values / np.abs(values).max(axis=1, keepdims=True)).astype(np.float32)
    squares = values**2
    n_a = labels.sum(axis=0)
    n_b = len(labels) - n_a
    sum_a, square_a = values @ labels, squares @ labels
    mean_a, mean_b = sum_a / n_a, (values.sum(axis=1, keepdims=True) - sum_a) / n_b
    variance = (square_a / n_a - mean_a**2) / (n_a - 1)
    variance += ((squares.sum(axis=1, keepdims=True) - square_a) / n_b - mean_b**2) / (n_b - 1)
    return (mean_a - mean_b) / np.sqrt(np.maximum(variance, 0))


def _paired_t(differences, signs):
    """One-sample t of every sign pattern: [column, pair], [pair, permutation] -> [column, permutation]."""
    n = len(signs)
    differences = (differences / np.abs(differences).max(axis=1, keepdims=True)).astype(np.float32)
    mean = differences @ signs / n
    variance = ((differences**2).mean(axis=1, keepdims=True) - mean**2) / (n - 1)
    return mean / np.sqrt(np.maximum(variance, 0))
