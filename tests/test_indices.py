"""Entropies and indices against answers worked out by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from rolecircuits.stats import entropy as entropies
from rolecircuits.stats import indices as role_indices
from rolecircuits.stats import moments, original_study
from rolecircuits.stats.masses import Places, final_query_masses
from synthetic import make_run

LN2, LN3, LN4 = math.log(2), math.log(3), math.log(4)


def hand_run(rows, category, span, windows=(None,), prompt_format="raw"):
    """A run of one head from explicit rows: rows[prompt][query] is a distribution over the visible
    keys; one layer a window."""
    n_query = max(len(prompt) for prompt in rows)
    pattern = np.zeros((len(rows), n_query, n_query))
    for p, prompt in enumerate(rows):
        for q, row in enumerate(prompt):
            pattern[p, q, : len(row)] = row
    real = np.arange(n_query) < np.array([len(prompt) for prompt in rows])[:, None]
    safe = np.where(real[..., None], pattern, np.eye(n_query))
    shape = (len(rows), len(windows), 1, n_query)
    visible = entropies.visible_keys(n_query, windows)
    few = entropies.sinkfree_keys(visible)[None, :, None, :] < 2

    def spread(values, missing=False):
        full = np.broadcast_to(np.where(real, values, np.nan)[:, None, None], shape)
        return np.where(few, np.nan, full) if missing else full

    return SimpleNamespace(
        crossed=False,
        category=np.array(category),
        n_tokens=np.array([len(prompt) for prompt in rows]),
        span=np.array(span),
        entropy=spread(entropies.attention_entropy(safe)),
        entropy_sinkfree=spread(entropies.sinkfree_entropy(safe), missing=True),
        visible_keys=visible,
        prompt_format=prompt_format,
    )


@pytest.mark.parametrize("n", [1, 2, 3, 7, 1000])
def test_uniform_row_of_n_keys_has_entropy_ln_n(n):
    assert entropies.attention_entropy(np.full(n, 1 / n)) == pytest.approx(math.log(n), abs=1e-12)


def test_masked_keys_change_nothing():
    assert entropies.attention_entropy([0.5, 0.5, 0, 0]) == pytest.approx(LN2, abs=1e-15)
    assert entropies.attention_entropy([0.75, 0.25]) == pytest.approx(
        2 * LN2 - 0.75 * LN3, abs=1e-15
    )


def test_one_hot_is_zero_and_not_minus_zero():
    entropy = entropies.attention_entropy(np.eye(4))
    assert entropy.tolist() == [0.0] * 4 and not np.signbit(entropy).any()


def test_no_epsilon_at_small_probabilities():
    tiny = 1e-9
    expected = -tiny * math.log(tiny) - (1 - tiny) * math.log1p(-tiny)
    assert entropies.attention_entropy([1 - tiny, tiny]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([0, 0, 0], "sums to 0,"),
        ([0.5, 0.3], "sums to 0.8,"),
        ([1, 1], "to 2,"),
        ([math.nan, 1], "to nan"),
    ],
)
def test_rows_that_are_no_distribution_are_errors_with_the_sum(row, said):
    with pytest.raises(ValueError, match=said):
        entropies.attention_entropy([[1.0] + [0.0] * (len(row) - 1), row])


def test_negative_probability_is_an_error():
    with pytest.raises(ValueError, match=r"negative: -0\.5"):
        entropies.attention_entropy([1.5, -0.5])


def test_tolerance_is_the_callers():
    assert entropies.attention_entropy([0.5, 0.498], tolerance=3e-3) > 0
    with pytest.raises(ValueError, match="tolerance 0.001"):
        entropies.attention_entropy([0.5, 0.498])


def test_sinkfree_drops_key_0_and_renormalises():
    row = [0.6, 0.1, 0.3]
    assert entropies.sinkfree_pattern(row).tolist() == pytest.approx([0.25, 0.75])
    assert entropies.sinkfree_entropy(row) == pytest.approx(2 * LN2 - 0.75 * LN3, abs=1e-15)


def test_sinkfree_is_undefined_where_all_mass_sat_on_the_sink():
    entropy = entropies.sinkfree_entropy([[1, 0, 0], [0.5, 0.5, 0], [0.8, 0.1, 0.1]])
    assert np.isnan(entropy[0]) and entropy[1] == 0 and entropy[2] == pytest.approx(LN2)
    assert np.isnan(entropies.sinkfree_entropy([[1.0]])).all()


def test_visible_keys_are_causal_and_capped_by_the_window():
    assert entropies.visible_keys(5, [None, 3, 1]).tolist() == [
        [1, 2, 3, 4, 5],
        [1, 2, 3, 3, 3],
        [1, 1, 1, 1, 1],
    ]


def test_sinkfree_keys_lose_key_0_only_while_it_is_visible():
    visible = entropies.visible_keys(5, [None, 3])
    assert entropies.sinkfree_keys(visible).tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 3]]


def test_normalised_uniform_is_1_for_any_length_and_undefined_for_one_key():
    keys = np.arange(1, 50)
    value = entropies.normalise_entropy(np.log(keys), keys)
    assert np.isnan(value[0]) and np.allclose(value[1:], 1, atol=1e-15)
    assert np.isnan(entropies.normalise_entropy(np.zeros(2), np.array([0, 1]))).all()


def test_row_mask_of_the_prompt_and_of_its_text():
    n_tokens, span = np.array([3, 4]), np.array([[1, 3], [2, 3]])
    assert role_indices.row_mask(n_tokens, span, 4, True).astype(int).tolist() == [
        [1, 1, 1, 0],
        [1, 1, 1, 1],
    ]
    assert role_indices.row_mask(n_tokens, span, 4, False).astype(int).tolist() == [
        [0, 1, 1, 0],
        [0, 0, 1, 0],
    ]


def test_prompt_values_of_a_prompt_worked_out_by_hand():
    run = hand_run([[[1], [0.5, 0.5], [0.5, 0.25, 0.25]]], ["neutral"], [[1, 3]])
    assert role_indices.prompt_values(run, "raw")[0, 0, 0] == pytest.approx(
        (0 + LN2 + 1.5 * LN2) / 3
    )
    assert role_indices.prompt_values(run, "normalised")[0, 0, 0] == pytest.approx(
        (1 + 1.5 * LN2 / LN3) / 2
    )
    assert role_indices.prompt_values(run, "sinkfree")[0, 0, 0] == pytest.approx(1.0)
    run.prompt_format = "chat"
    assert role_indices.prompt_values(run, "raw")[0, 0, 0] == pytest.approx((LN2 + 1.5 * LN2) / 2)
    with pytest.raises(ValueError, match="normalised, sinkfree, raw"):
        role_indices.prompt_values(run, "row")


def test_a_window_moved_past_the_sink_divides_by_all_of_its_keys():
    rows = [[[1], [0.5, 0.5], [0, 0.5, 0.5], [0, 0, 0.5, 0.5]]]
    run = hand_run(rows, ["neutral"], [[2, 4]], windows=(2,))
    assert run.visible_keys.tolist() == [[1, 2, 2, 2]]
    assert role_indices.prompt_values(run, "normalised")[0, 0, 0] == pytest.approx(1.0)
    assert role_indices.prompt_values(run, "sinkfree")[0, 0, 0] == pytest.approx(1.0)


def test_a_prompt_without_a_defined_row_is_left_out_of_its_category():
    run = hand_run([[[1]], [[1], [0.5, 0.5]]], ["neutral"] * 2, [[0, 1], [0, 2]])
    values = role_indices.prompt_values(run, "normalised")[:, 0, 0]
    assert np.isnan(values[0]) and values[1] == pytest.approx(1)
    assert moments.category_mean(values, run.category, "neutral") == pytest.approx(1)
    assert np.isnan(moments.category_mean(values, run.category, "confounder"))


def test_prompts_weigh_equally_whatever_their_length():
    values = np.array([1.0, 3.0, 10.0])
    assert (
        moments.category_mean(values, np.array(["neutral", "neutral", "confounder"]), "neutral")
        == 2
    )


def test_indices_of_known_means():
    means = {"self_referent": 0.6, "confounder": 0.9, "neutral": 1.2}
    indices = role_indices.indices_of_means(means.get)
    assert indices["rfc"] == pytest.approx(0.5) and indices["rsi"] == pytest.approx(0.25)


def test_neutral_entropy_0_is_undefined_not_0():
    rfc, rsi = (
        role_indices.rfc([0.5, 0.5, 0], [0, 1, 0]),
        role_indices.rsi([0.5, 0.5, 0], 0.7, [0, 1, 0]),
    )
    assert np.isnan(rfc).tolist() == [True, False, True] and rfc[1] == 0.5
    assert np.isnan(rsi).tolist() == [True, False, True] and rsi[1] == pytest.approx(0.2)


def test_layer_indices_of_uniform_attention_equal_their_null():
    def uniform(n):
        return [[1 / (q + 1)] * (q + 1) for q in range(n)]

    rows = [uniform(2), uniform(3), uniform(4), uniform(4)]
    category = ["self_referent", "neutral", "confounder", "confounder"]
    run = hand_run(rows, category, [[0, len(r)] for r in rows])
    means = {
        "self_referent": LN2 / 2,
        "neutral": (LN2 + LN3) / 3,
        "confounder": (LN2 + LN3 + LN4) / 4,
    }
    expected = {
        index: float(value) for index, value in role_indices.indices_of_means(means.get).items()
    }
    for kind in role_indices.KINDS:
        null, found = role_indices.layer_null(run, kind), role_indices.layer_indices(run, kind)
        for index in role_indices.INDICES:
            assert null[index] == pytest.approx(
                [expected[index] if kind == "raw" else 0], abs=1e-12
            )
            if kind != "sinkfree":
                assert found[index] == pytest.approx(null[index], abs=1e-12)
    by_length = role_indices.length_null(run.category, run.n_tokens, run.span)
    assert by_length == pytest.approx(expected)


def test_length_null_without_the_bos_row():
    category = np.array(["self_referent", "neutral", "confounder"])
    n_tokens, span = np.array([2, 3, 3]), np.array([[1, 2], [1, 3], [1, 3]])
    null = role_indices.length_null(category, n_tokens, span, whole_prompt=False)
    assert null["rfc"] == pytest.approx(1 - LN2 / ((LN2 + LN3) / 2))
    assert null["rsi"] == pytest.approx(1 - LN2 / ((LN2 + LN3) / 2))


def test_window_lowers_the_raw_null():
    rows = [[[1], [0.5, 0.5], [1 / 3] * 3]]
    run = hand_run(rows, ["neutral"], [[0, 3]], windows=(None, 2))
    assert role_indices.null_values(run, "raw")[0] == pytest.approx([(LN2 + LN3) / 3, 2 * LN2 / 3])


MASSES = {
    1: (0.2, 0.2, 0.0, 0.0, 0),
    2: (0.5, 0.5, 0.2, 0.3, 1),
    3: (0.9, 0.9, 0.2, 0.4, 1),
    4: (0.9, 1.2, 0.5, 0.9, 2),
    5: (0.9, 1.5, 0.5, 1.1, 2),
    6: (0.9, 1.8, 0.9, 1.8, 3),
    8: (0.9, 2.4, 0.9, 2.4, 3),
}


@pytest.mark.parametrize("length", MASSES)
def test_final_query_masses_by_hand(length):
    """Keys 1, 2, 3 ... of the text carry 0.2, 0.3, 0.4 ...; key 0 (BOS) and the key behind the text
    carry 50."""
    text = np.arange(2, length + 2) / 10
    final_row = np.concatenate([[50], text, [50]])[None, None, :]
    masses = final_query_masses(final_row, Places(np.array([[1, 1 + length]])))
    first, last, edge_first, edge_last, k = MASSES[length]
    assert masses["first_mass"].item() == pytest.approx(first)
    assert masses["last_mass"].item() == pytest.approx(last)
    assert masses["edge_mass"][0, 0].tolist() == pytest.approx([edge_first, edge_last])
    assert masses["edge_tokens"].tolist() == [k]


def test_original_head_indices_equal_an_explicit_loop():
    run = make_run(n_layers=2, n_heads=3, per_category=4, prompt_format="raw")
    found = original_study.original_head_indices(run)
    for layer in range(2):
        for head in range(3):
            means = {}
            for name in ("self_referent", "neutral", "confounder"):
                pooled = []
                for p in range(len(run.category)):
                    if run.category[p] == name:
                        pooled += [
                            float(run.entropy[p, layer, head, q]) for q in range(run.n_tokens[p])
                        ]
                means[name] = sum(pooled) / len(pooled)
            rfc = 1 - means["self_referent"] / means["neutral"]
            rsi = (means["confounder"] - means["self_referent"]) / means["neutral"]
            assert found["rfc"][layer, head] == pytest.approx(rfc, rel=1e-9)
            assert found["rsi"][layer, head] == pytest.approx(rsi, rel=1e-9)


def test_original_pools_rows_so_that_long_prompts_weigh_more():
    rows = [[[1], [0.5, 0.5]], [[1]], [[1], [0.5, 0.5]]]
    run = hand_run(rows, ["self_referent", "self_referent", "neutral"], [[0, len(r)] for r in rows])
    assert original_study.original_head_indices(run)["rfc"].item() == pytest.approx(
        1 - (LN2 / 3) / (LN2 / 2)
    )
    assert role_indices.layer_indices(run, "raw")["rfc"].item() == pytest.approx(
        1 - (LN2 / 4) / (LN2 / 2)
    )
    assert np.isnan(original_study.original_head_indices(run)["rsi"]).all()


def test_original_pools_the_texts_rows_of_chat_prompts():
    rows = [[[1], [0.5, 0.5]], [[1], [0.5, 0.5], [1 / 3] * 3]]
    run = hand_run(rows, ["self_referent", "neutral"], [[1, 2], [1, 3]], prompt_format="chat")
    assert original_study.original_head_indices(run)["rfc"].item() == pytest.approx(
        1 - LN2 / ((LN2 + LN3) / 2)
    )


def test_indices_of_a_synthetic_run_point_the_right_way():
    strong = role_indices.layer_indices(make_run(n_layers=3, effect=1.0))
    assert (strong["rfc"] > 0.1).all() and (strong["rsi"] > 0.1).all()
