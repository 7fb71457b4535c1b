"""Are the edited heads a random choice of their layers' heads? Ranks, and their exact test.

    rank   of a head among its pool, the heads of its layer under the same edit, by |effect|:
           1 is the largest, ties share the mean of their ranks
    W      sum of the ranks of the chosen heads of all pools
    p      P(|W - E W| >= |w - E W|), had the chosen heads been drawn from their pools at random

The distribution of W is exact: inside a pool all choices of as many heads are counted, and pools,
which are independent, are convolved (Wilcoxon 1945; the stratified rank test of Lehmann,
Nonparametrics, 1975, ch. 3). It asks about heads, so heads are what is drawn at random: a test over
prompts of a head against the mean of others finds nearly every head different, because no two heads
do the same.
"""

from typing import NamedTuple

import numpy as np


class SetTest(NamedTuple):
    """p of the chosen heads' ranks, and the smallest p that any choice from these pools can get."""

    n_candidates: int
    mean_rank: float
    expected_rank: float
    p: float
    smallest_p: float


def rank_sizes(values):
    """Rank of every |value|, 1 the largest, ties their mean rank: [head] -> [head]; NaN stays."""
    size = np.abs(np.asarray(values, dtype=np.float64))
    larger = (size[None, :] > size[:, None]).sum(axis=1)
    tied = (size[None, :] == size[:, None]).sum(axis=1)
    return np.where(np.isnan(size), np.nan, larger + (tied + 1) / 2)


def rank_test(pools):
    """The SetTest of [(ranks of a pool [head], which of them are chosen [head] bool), ...].

    Two-sided: chosen heads with small effects are no random choice either. None without pools.
    """
    if not pools:
        return None
    total, expected, n_chosen, mass = 0, 0, 0, np.ones(1)
    for ranks, chosen in pools:
        doubled = np.rint(2 * np.asarray(ranks)).astype(int)  # midranks are halves
        k = int(np.sum(chosen))
        total += int(doubled[chosen].sum())
        expected += k * (len(doubled) + 1)  # the mean of a pool's doubled ranks is n + 1
        n_chosen += k
        mass = np.convolve(mass, sum_distribution(doubled, k))
    distance = np.abs(np.arange(len(mass)) - expected)
    p, smallest = (
        float(mass[distance >= far].sum())
        for far in (abs(total - expected), distance[mass > 0].max())
    )
    means = (x / 2 / n_chosen for x in (total, expected))
    return SetTest(n_chosen, *means, min(p, 1.0), min(smallest, 1.0))


def sum_distribution(numbers, k):
    """P(sum = s), s = 0, 1, ..., of k of these whole numbers >= 0 drawn without replacement."""
    ways = np.zeros((k + 1, int(np.sort(numbers)[len(numbers) - k :].sum()) + 1))
    ways[0, 0] = 1.0  # [how many are drawn, their sum]
    for number in numbers:
        for drawn in range(k, 0, -1):
            ways[drawn, number:] += ways[drawn - 1, : ways.shape[1] - number]
    return ways[k] / ways[k].sum()


def merge_pools(controls):
    """[(candidates, their pool), ...], both lists of names in order of appearance.

    controls  {candidate: [names of its controls]}, of one edit; a candidate without controls has no
              pool. Candidates that share a control, or are each other's, are ranked in one pool.
    """
    pools = []
    for candidate, names in controls.items():
        if not names:
            continue
        pool = {candidate, *names}
        touching = [other for other in pools if pool & other]
        pools = [other for other in pools if not pool & other] + [pool.union(*touching)]
    order = list(dict.fromkeys(name for c, names in controls.items() for name in (c, *names)))
    merged = []
    for pool in sorted(pools, key=lambda pool: min(map(order.index, pool))):
        names = [name for name in order if name in pool]
        merged.append(([name for name in names if controls.get(name)], names))
    return merged
