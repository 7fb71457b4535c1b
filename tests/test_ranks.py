"""Ranks of heads in their layers: the exact test is the enumeration's, and rejects random heads as
often as it says; the mean of two random heads is no yardstick."""

from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats

from rolecircuits.edits import effects
from rolecircuits.edits.ranks import merge_pools, rank_sizes, rank_test, sum_distribution
from rolecircuits.stats.contrasts import q_values


def chosen(n, *heads):
    return np.isin(np.arange(n), heads)


def test_ranks_by_hand():
    ranks = rank_sizes([0.5, -3, np.nan, 0.5, 0])
    np.testing.assert_array_equal(ranks, [2.5, 1, np.nan, 2.5, 4])


def test_p_by_hand():
    """The largest of 9 heads in each of three layers: P(W = 3 or W = 27) = 2 / 729."""
    pool = np.arange(1, 10), chosen(9, 0)
    found = rank_test([pool] * 3)
    assert (found.n_candidates, found.mean_rank, found.expected_rank) == (3, 1, 5)
    assert found.p == pytest.approx(2 / 729) == found.smallest_p
    assert rank_test([pool]).smallest_p == pytest.approx(2 / 9)
    assert rank_test([(np.arange(1, 10), chosen(9, 4))]).p == 1
    assert rank_test([(np.full(4, 2.5), chosen(4, 1))]).p == 1, "all tied"
    assert rank_test([]) is None


POOLS = {
    "one head a layer": [([5, 1, 3, 2], [0]), ([2, 2, 9], [2]), ([1, 7, 7, 7, 0], [1])],
    "several of a layer": [([5, 1, 3, 2, 8, 8], [0, 3, 4]), ([4, 4, 1, 6, 2], [1, 3])],
    "a whole layer": [([3, 1, 2], [0, 1, 2]), ([4, 9, 1, 6, 2], [1, 4])],
}


@pytest.mark.parametrize("name", POOLS)
def test_p_equals_the_enumeration_of_all_choices(name):
    pools = [(rank_sizes(sizes), heads) for sizes, heads in POOLS[name]]
    choices = [
        [ranks[list(heads)].sum() for heads in combinations(range(len(ranks)), len(own))]
        for ranks, own in pools
    ]
    sums = np.array([sum(each) for each in product(*choices)])
    far = np.abs(sums - sums.mean())
    own = sum(ranks[heads].sum() for ranks, heads in pools)
    found = rank_test([(ranks, chosen(len(ranks), *heads)) for ranks, heads in pools])
    n = sum(len(heads) for _, heads in pools)
    assert found.expected_rank == pytest.approx(sums.mean() / n)
    assert found.mean_rank == pytest.approx(own / n)
    assert found.p == pytest.approx((far >= abs(own - sums.mean()) - 1e-9).mean())
    assert found.smallest_p == pytest.approx((far >= far.max() - 1e-9).mean())


def test_sums_of_draws_without_replacement():
    found = sum_distribution([1, 1, 4], 2)
    np.testing.assert_allclose(found, [0, 0, 1 / 3, 0, 0, 2 / 3])
    large = sum_distribution(2 * np.arange(1, 33), 16)
    assert large.sum() == pytest.approx(1) and large[large > 0].min() == pytest.approx(
        1 / 601080390
    )


def test_candidates_that_share_heads_are_one_pool():
    assert merge_pools({"a": ["b", "x"], "b": ["a", "x"], "c": ["y"], "d": []}) == [
        (["a", "b"], ["a", "b", "x"]),
        (["c"], ["c", "y"]),
    ]
    bridged = merge_pools({"a": ["x"], "b": ["y"], "c": ["x", "y"]})
    assert bridged == [(["a", "b", "c"], ["a", "x", "b", "y", "c"])]


N_LAYERS, N_HEADS, N_PROMPTS = 6, 9, 40


def simulated_kl(rng):
    """KL of every head and prompt, [layer, head, prompt]: heads differ with a heavy tail, as in the
    sweep of a real model, where the largest of a layer is many times its median."""
    of_head = np.exp(1.2 * rng.standard_t(3, size=(N_LAYERS, N_HEADS, 1)).clip(-6, 6))
    return of_head * rng.gamma(2.0, 0.5, size=(N_LAYERS, N_HEADS, N_PROMPTS))


def edit(name, kl, layer, controls, role):
    labels = {"role": role, "type": "head"}
    metrics = dict.fromkeys(effects.PROMPT_METRICS, kl)
    return {"effects": metrics, "layer": layer, "change": "zero_out", "controls": controls} | {
        "labels": labels
    }


def set_test_of(kl, candidates):
    """The test that interventions.py makes of these (layer, head), of the KL."""
    measured, rows = {}, []
    for layer in dict.fromkeys(layer for layer, _ in candidates):
        names = [f"sh_{layer}_{head}" for head in range(N_HEADS)]
        for head, name in enumerate(names):
            is_candidate = (layer, head) in candidates
            others = [other for other in names if other != name] if is_candidate else []
            role = "candidate" if is_candidate else "control"
            measured[name] = edit(name, kl[layer, head], layer, others, role)
            row = dict.fromkeys(effects.METRICS, np.nan)
            rows.append(
                row | {"intervention": name, "category": "all", "kl": kl[layer, head].mean()}
            )
    [found] = effects.set_tests(rows, measured)
    return found


def test_random_heads_are_rejected_as_often_as_the_test_says_and_always_by_the_old_rule():
    """The old rule: some head with q < 0.05 against the mean of two random heads of its layer, by
    sign flips over prompts."""
    rng, n_draws, n_old = np.random.default_rng(11), 2000, 100
    rejected, by_old_rule = [], []
    for draw in range(n_draws):
        kl = simulated_kl(rng)
        layers = rng.choice(N_LAYERS, 5)  # layers may come twice
        heads = [rng.permutation(N_HEADS) for _ in range(N_LAYERS)]
        candidates = [(int(layer), int(heads[layer][i])) for i, layer in enumerate(layers)]
        test = set_test_of(kl, candidates)
        assert test["n_candidates"] == 5 and test["n_layers"] == len(set(layers))
        rejected.append(test["p"] < 0.05)
        if draw < n_old:
            beyond = []
            for layer, head in candidates:
                others = rng.permutation([h for h in range(N_HEADS) if h != head])[:2]
                beyond.append(kl[layer, head] - kl[layer, others].mean(axis=0))
            p = stats.ttest_1samp(np.stack(beyond, axis=-1), 0).pvalue
            by_old_rule.append((q_values(p) < 0.05).any())
    assert 0.03 < np.mean(rejected) < 0.07
    assert np.mean(by_old_rule) > 0.9


def test_heads_that_are_chosen_for_their_effect_are_found():
    rng, found = np.random.default_rng(3), []
    for _ in range(50):
        kl = simulated_kl(rng)
        order = np.argsort(-kl.mean(axis=-1), axis=-1)
        found.append(set_test_of(kl, [(layer, int(order[layer, layer % 3])) for layer in range(5)]))
    assert np.mean([test["p"] < 0.05 for test in found]) == 1
    assert all(test["mean_rank"] < test["expected_rank"] for test in found)
