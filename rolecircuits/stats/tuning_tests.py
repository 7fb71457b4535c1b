"""Tests of a tuning study: the training run (arm x seed) is the unit, no checkpoint and no layer.

    exact permutation   two arms are compared by the difference of their means over runs, against
                        every way to split the same runs into groups of these sizes (Fisher 1935;
                        Ernst 2004). 5 against 5 runs have 252 splits: no p is below 2 / 252
    p_max               step-down max-T over signals from the same splits (Westfall and Young 1993);
                        the spread of runs outside the contrast is pooled into the error, which
                        splits do not change: it stays exact, and has 12 degrees of freedom, not 8
    interval            the shifts of the first arm that the test does not reject at 0.05
    R2                  least squares from the other runs, 1 - squared error / squared error of
                        their mean, each run left out in turn. Below 0: worse than that mean
    gain                R2 of drift and compliance - R2 of drift; its p permutes the residuals of
                        drift alone over whole runs (Freedman and Lane 1983)
    reliability         ICC(1): one-way, the arm is the group (Shrout and Fleiss 1979)

Drift is the divergence KL(step 0 || checkpoint). Where parameters have moved by a small step s, KL
grows with s^2 (Kullback 1959, ch. 2) and a mean of attention with s: signals are held against
sqrt(drift), which is 0 at step 0, where a logarithm is not defined. One sign: first - second arm.
"""

from itertools import combinations
from math import comb
from typing import NamedTuple

import numpy as np

from rolecircuits.inputs.arguments import ALPHA, DEFAULT_SEED
from rolecircuits.inputs.errors import UserError
from rolecircuits.stats.moments import divide

ARMS = ("role", "facts", "shuffled")
CONTRASTS = (("role", "facts"), ("role", "shuffled"), ("facts", "shuffled"))
MOST_SPLITS = 200_000  # more splits than this (11 against 11 runs) are drawn, not listed
MOST_MISMATCH = 1.5  # drifts further apart than this factor are not made equal by calculation
N_PERMUTATIONS, N_DATASETS = 999, 2000
ROUNDING = 1e-9


class Study(NamedTuple):
    """Runs of a tuning study; changes are from step 0, and NaN where a run lacks a checkpoint.

    arm, seed       [run]              dose, matched  [slot]: doses in order, then matched drift
    drift           [run, slot] nats   compliance     [run, slot], less that of step 0
    change          [run, slot, signal]               profile_change  [run, slot, profile, layer]
    """

    arm: np.ndarray
    seed: np.ndarray
    dose: np.ndarray
    matched: np.ndarray
    drift: np.ndarray
    compliance: np.ndarray
    signal: tuple
    change: np.ndarray
    profile: tuple
    profile_change: np.ndarray

    @property
    def last(self):
        """The slot of the last dose."""
        return int(np.flatnonzero(~self.matched)[-1])

    def runs_of(self, arm):
        """Places of an arm's runs."""
        return np.flatnonzero(self.arm == arm)


class Permutation(NamedTuple):
    """first - second arm: estimate, interval (NaN: none) and p, each [...].

    r  [split, ...] correlation of the values with the split, the observed one first
    """

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    r: np.ndarray


def gather_runs(arrays):
    """The Study of a table of checkpoints.

    arrays  {name: array}: arm, seed, dose, matched, drift, compliance, signal, value, profile and
            profile_value, a row a checkpoint, step 0 under the arm "base"
    """
    arm, seed, dose, matched = (np.asarray(arrays[k]) for k in ("arm", "seed", "dose", "matched"))
    base = arm == "base"
    if not base.any() or base.all():
        raise UserError("a tuning study needs step 0 (arm base) and at least one run")
    keys = list(zip(matched[~base].tolist(), dose[~base].tolist(), strict=True))
    last = max(one[1] for one in keys)
    slots = sorted({(False, d) for m, d in keys if not m}) + (
        [(True, last)] if matched.any() else []
    )
    order = {name: i for i, name in enumerate(ARMS)}
    runs = sorted(
        set(zip(arm[~base].tolist(), seed[~base].tolist(), strict=True)),
        key=lambda run: (order.get(run[0], len(ARMS)), *run),
    )
    place = np.full((len(runs), len(slots)), -1)
    for row in np.flatnonzero(~base):
        at = runs.index((arm[row], seed[row]))
        slot = len(slots) - 1 if matched[row] else slots.index((False, dose[row]))
        if place[at, slot] >= 0:
            raise UserError(f"two checkpoints of {arm[row]} {seed[row]} at dose {dose[row]}")
        place[at, slot] = row

    def changes(name):
        values = np.asarray(arrays[name], dtype=np.float64)
        moved = values - values[base].mean(axis=0)
        missing = (place < 0).reshape(place.shape + (1,) * (values.ndim - 1))
        return np.where(missing, np.nan, moved[place])

    drift = np.maximum(np.asarray(arrays["drift"], dtype=np.float64), 0.0)  # rounding of 0
    return Study(
        np.array([run[0] for run in runs]),
        np.array([run[1] for run in runs]),
        np.array([d for _, d in slots]),
        np.array([m for m, _ in slots]),
        np.where(place < 0, np.nan, drift[place]),
        changes("compliance"),
        tuple(np.asarray(arrays["signal"]).tolist()),
        changes("value"),
        tuple(np.asarray(arrays["profile"]).tolist()),
        changes("profile_value"),
    )


def list_splits(n_first, n_second, seed=DEFAULT_SEED):
    """Every choice of n_first of all runs: [split, run] bool, the observed one (the first) first.

    More than MOST_SPLITS of them: the observed one and as many drawn ones.
    """
    n = n_first + n_second
    if comb(n, n_first) <= MOST_SPLITS:
        chosen = np.array(list(combinations(range(n), n_first)), dtype=int)
    else:
        drawn = np.random.default_rng(seed).random((MOST_SPLITS, n)).argsort(axis=1)
        drawn[0] = np.arange(n)
        chosen = drawn[:, :n_first]
    splits = np.zeros((len(chosen), n), dtype=bool)
    np.put_along_axis(splits, chosen, True, axis=1)
    return splits


def smallest_p(n_first, n_second):
    """The smallest two-sided p that so many runs can give; equal groups have a mirror image."""
    return (2 if n_first == n_second else 1) / comb(n_first + n_second, n_first)


def exact_permutation(first, second, elsewhere=0.0):
    """The exact two-sided test of mean(first) = mean(second): Permutation.

    first, second  [run, ...]; undefined where a value is (NaN)
    elsewhere      [...] sum of squares inside other arms, for `step_down` over signals: of one
                   signal alone it changes no p
    p is the share of splits whose difference of means is at least as far from 0.
    """
    first, second = (np.asarray(x, dtype=np.float64) for x in (first, second))
    shape = first.shape[1:]
    values = np.concatenate([first, second]).reshape(len(first) + len(second), -1)
    splits = list_splits(len(first), len(second))
    difference = split_differences(values, splits)
    r = split_correlations(values, splits, difference, np.ravel(elsewhere))
    p = exact_p(r)
    low, high = (
        np.where(np.isnan(p), np.nan, end) for end in invert_test(difference, splits, len(first))
    )
    parts = (x.reshape(shape) for x in (difference[0], low, high, p))
    return Permutation(*parts, r.reshape(-1, *shape))


def split_differences(values, splits):
    """mean(chosen) - mean(others) of every split: values [run, signal] -> [split, signal]."""
    n_first = splits[0].sum()
    weights = np.where(splits, 1 / n_first, -1 / (splits.shape[1] - n_first))
    return weights @ (values - values.mean(axis=0))


def split_correlations(values, splits, difference, elsewhere=0.0):
    """Pearson's r of values and split, 0 where the values do not vary: [split, signal].

    values     [run, signal], or [split, run, signal] where they depend on the split
    elsewhere  [signal] or [split, signal], added to the sum of squares of the values
    |r| grows with the difference of means and with Student's t (the error of t pools what is
    elsewhere), by one function for all signals: tests by r or by t are the same.
    """
    n, n_first = splits.shape[1], splits[0].sum()
    axis = values.ndim - 2
    total = ((values - values.mean(axis=axis, keepdims=True)) ** 2).sum(axis=axis)
    constant = total <= ROUNDING**2 * (values**2).sum(axis=axis)
    total = total + np.nan_to_num(elsewhere)
    r = divide(difference * np.sqrt(n_first * (n - n_first) / n), np.sqrt(total))
    return np.where(constant, 0.0, r)


def exact_p(r):
    """Share of splits whose |r| reaches that of the first: [split, ...] -> [...]; NaN stays."""
    size = np.abs(r)
    p = (size >= size[0] - ROUNDING).mean(axis=0)
    return np.where(np.isnan(r).any(axis=0), np.nan, p)


def step_down(r):
    """Step-down max-T p of a family of signals under the same splits: [split, signal] -> [signal].

    With signals in falling order of |r|, p of the k-th is the share of splits in which the largest
    |r| of the k-th and later ones reaches it, and at least p of the one before (Westfall and Young
    1993, algorithm 2.8). NaN stays NaN and counts for nothing.
    """
    p, size = np.full(r.shape[1], np.nan), np.abs(r)
    defined = np.flatnonzero(~np.isnan(r).any(axis=0))
    order = defined[np.argsort(-size[0, defined], kind="stable")]
    largest = np.maximum.accumulate(size[:, order[::-1]], axis=1)[:, ::-1]
    reached = largest >= size[0, order] - ROUNDING
    p[order] = np.maximum.accumulate(reached.mean(axis=0))
    return p


def invert_test(difference, splits, n_first):
    """(low, high): the shifts of the first group that the exact test does not reject at ALPHA.

    After a shift d the difference of split s is D_s - d w_s, w_s the share of the first group that
    it chose less the share of it in the rest; |D_s - d w_s| >= |D - d| holds on one side of D up to
    a single d, at which one of the two sides of the modulus is met. NaN where the test can never
    reject (its smallest p is above ALPHA).
    """
    own = np.arange(splits.shape[1]) < n_first
    weight = split_differences(own[:, None].astype(float), splits)
    moving = np.abs(weight[:, 0]) < 1 - ROUNDING
    needed = int(np.floor(ALPHA * len(splits) + ROUNDING)) + 1 - int((~moving).sum())
    if needed < 1:
        return np.full((2, difference.shape[1]), np.nan)
    weight, observed = weight[moving], difference[0]
    ends = []
    for sign in (-1, 1):
        d, d_0 = sign * difference[moving], sign * observed
        reach = np.maximum((d + d_0) / (1 + weight), (d_0 - d) / (1 - weight))
        ends.append(sign * -np.sort(-reach, axis=0)[needed - 1])
    return ends[0], ends[1]


def smallest_difference(sizes, power=0.8, n_datasets=N_DATASETS, seed=DEFAULT_SEED):
    """The difference of means, in standard deviations between runs, that is found with this power.

    sizes  runs of the first arm and of each other one, all of which it must be told from (p <
           ALPHA in each exact test); normal values of equal spread are drawn. NaN: never found
    A shift of the first arm moves the interval of `invert_test` along: the difference is found once
    it is larger than the distance of the lower end from 0.
    """
    draws = np.random.default_rng(seed).standard_normal((sum(sizes), n_datasets))
    first, *others = np.split(draws, np.cumsum(sizes)[:-1])
    needed = [-exact_permutation(first, other).low for other in others]
    return float(np.quantile(np.max(needed, axis=0), power))


def find_matched(study):
    """(slot [run], drift wanted / drift there [run], drift wanted in nats).

    The checkpoint of matched drift, or the last dose where a run has none. The drift wanted is the
    geometric mean over the matched checkpoints. The ratio is NaN where the two are further apart
    than MOST_MISMATCH, and everywhere if there is no matched checkpoint.
    """
    runs = np.arange(len(study.arm))
    if not study.matched.any():
        return np.full(len(runs), study.last), np.full(len(runs), np.nan), np.nan
    with np.errstate(divide="ignore"):  # drift 0: no run is near to it
        wanted = float(np.exp(np.nanmean(np.log(study.drift[:, -1]))))
    slot = np.where(np.isnan(study.drift[:, -1]), study.last, len(study.dose) - 1)
    ratio = divide(wanted, study.drift[runs, slot])
    near = (ratio <= MOST_MISMATCH) & (ratio >= 1 / MOST_MISMATCH)
    return slot, np.where(near, ratio, np.nan), wanted


def values_at_matched_drift(study):
    """(changes [run, signal], profiles [run, profile, layer]) of one drift; NaN as `find_matched`.

    What is left of the mismatch is taken out of a change along a line from step 0: change *
    sqrt(drift wanted / its drift), both of first order in the length of the adapter.
    """
    slot, ratio, _ = find_matched(study)
    runs = np.arange(len(slot))
    changes = study.change[runs, slot] * np.sqrt(ratio)[:, None]
    there = np.isfinite(ratio)[:, None, None]
    return changes, np.where(there, study.profile_change[runs, slot], np.nan)


def values_at_equal_drift(study):
    """(change [run, signal], drift): interpolated along each run's doses, linear in sqrt(drift).

    A second way to equal drift, without scaled adapters: the largest drift that every run reaches,
    from step 0 (0, 0) over its doses.
    """
    doses = ~study.matched
    path = np.sqrt(study.drift[:, doses])
    wanted = float(np.nanmax(path, axis=1).min())
    out = np.full_like(study.change[:, 0], np.nan)
    for run, change in enumerate(study.change[:, doses]):
        order = np.argsort(path[run])
        x = np.concatenate([[0.0], path[run, order]])
        for signal in range(out.shape[1]):
            out[run, signal] = np.interp(wanted, x, np.concatenate([[0.0], change[order, signal]]))
    return out, wanted**2


def left_out_weights(features):
    """[checkpoint, checkpoint]: row i predicts checkpoint i from the checkpoints of other runs.

    features  [[run, slot]]; a constant is added. Least squares; checkpoints run by run.
    """
    n_runs, n_slots = features[0].shape
    design = np.stack([np.ones(n_runs * n_slots), *map(np.ravel, features)], axis=1)
    run = np.repeat(np.arange(n_runs), n_slots)
    weights = np.zeros((len(run), len(run)))
    for left_out in range(n_runs):
        own = run == left_out
        weights[np.ix_(own, ~own)] = design[own] @ np.linalg.pinv(design[~own])
    return weights


class LeftOutRuns(NamedTuple):
    """R2 [signal] of a left-out run by each set of predictors, and the gain with its p."""

    drift: np.ndarray
    compliance: np.ndarray
    both: np.ndarray
    gain: np.ndarray
    gain_p: np.ndarray


def explain_changes(study, n_permutations=N_PERMUTATIONS, seed=DEFAULT_SEED):
    """How far sqrt(drift), compliance and both predict the changes of a run they have not seen.

    All checkpoints that every run has; each weighs the same. gain_p is one-sided: the share of
    permutations, the observed order among them, whose gain is at least as large.
    """
    there = np.isfinite(study.drift + study.compliance).all(axis=0)
    drift, compliance = np.sqrt(study.drift[:, there]), study.compliance[:, there]
    change = study.change[:, there]
    n_runs, n_slots, n_signals = change.shape
    if n_runs < 3 or not n_slots:
        return LeftOutRuns(*np.full((5, n_signals), np.nan))
    flat = change.reshape(-1, n_signals)
    sets = ([drift], [compliance], [drift, compliance])
    plain = left_out_weights([np.zeros_like(drift)])
    weights = [left_out_weights(features) for features in sets]
    r2 = [left_out_r2(flat, one, plain) for one in weights]
    gain = r2[2] - r2[0]
    design = np.stack([np.ones(len(flat)), drift.ravel()], axis=1)
    fitted = design @ (np.linalg.pinv(design) @ flat)
    rest = (flat - fitted).reshape(change.shape)
    rng, reached = np.random.default_rng(seed), np.ones(n_signals)
    for _ in range(n_permutations):
        moved = fitted + rest[rng.permutation(n_runs)].reshape(flat.shape)
        both, alone = (left_out_r2(moved, weights[i], plain) for i in (2, 0))
        reached += both - alone >= gain - ROUNDING
    p = np.where(np.isnan(gain), np.nan, reached / (1 + n_permutations))
    return LeftOutRuns(*r2, gain, p)


def left_out_r2(values, weights, plain):
    """1 - squared error of one prediction / that of another: values [checkpoint, signal]."""
    error, reference = (((values - w @ values) ** 2).sum(axis=0) for w in (weights, plain))
    return 1 - divide(error, reference)


def within_squares(values, group):
    """(sum of squares inside groups [...], degrees of freedom) of values [run, ...]."""
    squares, freedom = np.zeros(values.shape[1:]), 0
    for name in dict.fromkeys(np.asarray(group).tolist()):
        own = values[np.asarray(group) == name]
        squares = squares + ((own - own.mean(axis=0)) ** 2).sum(axis=0)
        freedom += len(own) - 1
    return squares, freedom


def within_sd(values, group):
    """Standard deviation between runs inside groups, pooled: [run, ...] -> [...]; NaN: no group
    has two runs."""
    return np.sqrt(divide(*within_squares(values, group)))


def icc(values, group):
    """ICC(1), the share of the variance of runs that their group makes: [run, ...] -> [...].

        (MSB - MSW) / (MSB + (k - 1) MSW)      k runs a group, (n - sum n_g^2 / n) / (g - 1) where
                                               groups differ in size

    Of a single run, not of a mean; below 0 where groups differ by less than runs of one do.
    """
    values, group = np.asarray(values, dtype=np.float64), np.asarray(group)
    names, sizes = np.unique(group, return_counts=True)
    n, n_groups = len(values), len(names)
    if n_groups < 2 or n == n_groups:
        return np.full(values.shape[1:], np.nan)
    means = np.stack([values[group == name].mean(axis=0) for name in names])
    spread = (means - values.mean(axis=0)) ** 2
    between = (sizes.reshape(-1, *[1] * (values.ndim - 1)) * spread).sum(axis=0) / (n_groups - 1)
    within = within_sd(values, group) ** 2
    k = (n - (sizes**2).sum() / n) / (n_groups - 1)
    return divide(between - within, between + (k - 1) * within)
