"""Tests over prompts: labels of two categories shuffled, or signs of matched differences flipped.

The statistic is the t of unequal variances (Janssen 1997), so that unequal spread alone does not
reject. p and p_max as in resampling.py; arrangements are the columns of a matrix.
"""

from itertools import combinations, product
from math import comb
from typing import NamedTuple

import numpy as np

from rolecircuits.inputs.arguments import DEFAULT_SEED
from rolecircuits.stats.moments import column_blocks, defined_moments
from rolecircuits.stats.resampling import (
    N_RESAMPLES,
    bootstrap_weights,
    family_p,
    studentised_difference,
)

TIE = 1e-5
TAIL = 0.999


class Test(NamedTuple):
    """A difference of means, its p-value, and its max-T p-value over all columns."""

    __test__ = False
    difference: np.ndarray
    p: np.ndarray
    p_max: np.ndarray


def permutation_test(a, b, n_permutations=N_RESAMPLES, seed=DEFAULT_SEED):
    """Two categories with equal means? Labels shuffled, Welch's t: Test, each field [...].

    a, b  [prompt, ...]; undefined values (NaN) are left out; few labellings are all enumerated
    p     NaN where a group has fewer than two defined values or nothing varies

    For p_max each column's |t| is divided by how much further its own bootstrap-t reaches than its
    permutations at their 99.9 % points, if further (balanced, after Beran 1988). Categories that
    differ in the shape of a skewed column are not exchangeable: without the division 8 % of
    families of 270 heads hold a false finding, with it less than 5 %.
    """
    values = np.concatenate([np.asarray(a, np.float64), np.asarray(b, np.float64)])
    if not len(a) or not len(b):
        return Test(*np.full((3, *values.shape[1:]), np.nan))
    labels = _draw_labels(len(a), len(b), n_permutations, seed)
    group = np.where(np.arange(len(values)) < len(a), "a", "b")
    weights = None
    if labels.shape[1] == n_permutations + 1:
        weights = bootstrap_weights(group, None, n_permutations, seed)
    difference = defined_moments(a)[1] - defined_moments(b)[1]
    return _permute(values, labels, _welch_t, difference, group, weights)


def sign_flip_test(differences, n_permutations=N_RESAMPLES, seed=DEFAULT_SEED):
    """Matched differences with mean zero? Signs flipped at random: Test, each field [...].

    differences  [pair, ...]; undefined values (NaN) are left out; few sign patterns are all
                 enumerated; p is NaN for fewer than two pairs and where all differences are 0
    """
    differences = np.asarray(differences, dtype=np.float64)
    signs = _draw_signs(len(differences), n_permutations, seed)
    return _permute(differences, signs, _paired_t, defined_moments(differences)[1])


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
    """p of |statistic|, arrangement 0 the observed one: alone, and against the family's maximum."""
    flat = values.reshape(len(values), -1)
    observed, p = np.full((2, flat.shape[1]), np.nan)
    maximum = np.full(arrangements.shape[1], -np.inf, dtype=np.float32)
    for columns, rows in column_blocks(~np.isnan(flat), arrangements.shape[1]):
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
            _, shift, error = studentised_difference(part[:, tested], group[rows], weights[rows])
            reached = reached / _tail_ratio(shift, error, t)
        observed[columns] = reached
    p_max = family_p(observed, maximum[1:])
    return Test(difference, *(x.reshape(values.shape[1:]) for x in (p, p_max)))


def _tail_ratio(shift, error, permuted):
    """How much further bootstrap-t reaches than permutations at 99.9 %, at least 1: [column]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        own = np.abs(shift[:, 1:] / error[:, 1:])
        own[np.isnan(own)] = np.inf
        rank = int(np.ceil(TAIL * own.shape[1])) - 1
        tails = [np.partition(t, rank, axis=1)[:, rank] for t in (own, permuted)]
        return np.fmax(1, tails[0] / tails[1])


def _welch_t(values, labels):
    """Welch's t: values [column, prompt], labels [prompt, permutation] -> [column, permutation]."""
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
    """One-sample t: [column, pair], signs [pair, permutation] -> [column, permutation]."""
    n = len(signs)
    differences = (differences / np.abs(differences).max(axis=1, keepdims=True)).astype(np.float32)
    mean = differences @ signs / n
    variance = ((differences**2).mean(axis=1, keepdims=True) - mean**2) / (n - 1)
    return mean / np.sqrt(np.maximum(variance, 0))
