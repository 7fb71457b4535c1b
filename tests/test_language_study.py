"""Profiles of languages and their agreement against answers by hand; the study on a tiny model."""

import csv

import numpy as np
import pytest

import language_study
from prompts import load_prompts
from rolecircuits.inputs.languages import FEATURES, read_typology
from rolecircuits.stats import language_profiles as lp
from rolecircuits.stats.indices import layer_values
from synthetic import make_run
from tiny_models import save_tiny


def run_of(source, n=10, seed=0, effect=0.6):
    return make_run(4, 2, seed=seed, effect=effect, prompts=load_prompts(source, n)[0])


@pytest.fixture(scope="module")
def profiles():
    sources = ("crossed:en", "crossed:de", "crossed:es", "crossed:zh", "crossed:es-drop")
    return [lp.measure_profile(s, run_of(s, seed=i), i) for i, s in enumerate(sources)]


def test_an_effect_is_what_its_formula_says():
    run = run_of("crossed:de", 12)
    profile = lp.measure_profile("crossed:de", run, 0)
    values = layer_values(run)
    mean = {name: values[run.category == name].mean(axis=0) for name in run.counts}
    by_hand = {
        "rfc": 1 - mean["self_referent"] / mean["neutral"],
        "rsi": (mean["confounder"] - mean["self_referent"]) / mean["neutral"],
        "third": (mean["third_person"] - mean["self_referent"]) / mean["neutral"],
    }
    assert profile.n_frames == 12 and profile.language == "de"
    for effect, expected in by_hand.items():
        found = profile.inference[effect]
        np.testing.assert_allclose(found.estimate, expected, atol=1e-6)
        assert (found.low < expected).all() and (expected < found.high).all()
        assert profile.mean[effect].estimate == pytest.approx(expected.mean(), abs=1e-6)
        assert profile.resampled[effect].shape == (lp.N_RESAMPLES, 4)
        assert abs(profile.resampled[effect].mean(axis=0) - expected).max() < 0.02
        assert np.isfinite(profile.matched[effect]).all() and (found.estimate > 0).all()
    assert not np.allclose(profile.matched["third"], profile.matched["rsi"])


def test_a_set_without_the_pronoun_has_no_third_person(profiles):
    dropped = profiles[-1]
    assert list(dropped.inference) == ["rfc", "rsi"] and dropped.language == "es"
    rows = lp.correlate_languages(profiles)
    pairs = [(r["set"], r["set_other"], r["index"]) for r in rows]
    assert len(pairs) == len(set(pairs)) == 10 + 10 + 6
    assert {r["index"] for r in rows if "crossed:es-drop" in (r["set"], r["set_other"])} == {
        "rfc",
        "rsi",
    }
    for row in rows:
        assert row["low"] <= row["estimate"] <= row["high"]


def test_languages_are_drawn_apart():
    """Equal draws would make noise that two languages do not share look shared."""
    one, two = (lp.measure_profile("crossed:en", run_of("crossed:en"), i) for i in (0, 1))
    assert (one.inference["rfc"].estimate == two.inference["rfc"].estimate).all()
    r = np.corrcoef(one.resampled["rfc"][:, 0], two.resampled["rfc"][:, 0])[0, 1]
    assert abs(r) < 0.15


def test_the_interval_is_wider_the_more_the_frames_differ():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 20))
    r = np.corrcoef(a, b)[0, 1]
    ends = []
    for noise in (1e-9, 0.2, 0.8):
        drawn = [x + noise * rng.normal(size=(2000, 20)) for x in (a, b)]
        ends.append(lp.interval_of(r, *drawn))
    assert ends[0] == pytest.approx((r, r), abs=1e-6)
    widths = [high - low for low, high in ends]
    assert widths[0] < widths[1] < widths[2] and all(low < r < high for low, high in ends[1:])


def test_languages_of_two_kinds_by_hand():
    """a, b of one kind, c, d of the other: 8 of the 24 orders leave the kinds as they are."""
    kind = np.array([0, 0, 1, 1])
    distance = (kind[:, None] != kind).astype(float)
    found = lp.permute_languages(0.5 * distance + 0.1, distance)
    assert found["estimate"] == pytest.approx(1) and found["permutations"] == 24
    assert found["p"] == found["floor"] == pytest.approx(8 / 24)
    opposite = lp.permute_languages(1 - distance, distance)
    assert opposite["estimate"] == pytest.approx(-1) and opposite["p"] == 1  # one-sided


def test_ten_languages_are_permuted_at_random_and_p_has_a_floor():
    languages = list(read_typology().values())
    distance = lp.distances(languages, FEATURES)
    found = lp.permute_languages(distance, distance)
    assert found["estimate"] == pytest.approx(1) and found["permutations"] == 10_000
    assert found["p"] == found["floor"] and 1e-4 <= found["floor"] < 0.002
    noise = np.random.default_rng(1).random((10, 10))
    p = [lp.permute_languages(noise + noise.T, distance, seed)["p"] for seed in (0, 1)]
    assert p[0] != p[1] and abs(p[0] - p[1]) < 0.03 and 0.01 < p[0] < 1


def test_a_feature_that_all_languages_share_is_not_tested():
    found = lp.permute_languages(np.random.default_rng(0).random((5, 5)), np.zeros((5, 5)))
    assert np.isnan(found["p"]) and found["floor"] == 1


def test_sets_that_share_words_are_near():
    words = lp.word_distances(["crossed:es", "crossed:pt", "crossed:zh", "crossed:es"])
    assert words[0, 3] == words[2, 2] == 0 and words[0, 2] == words[1, 2] == 1
    assert 0 < words[0, 1] == words[1, 0] < 1  # te, me, a


def test_typology_is_tested_on_languages_not_on_sets(profiles):
    rows = lp.typology_rows(profiles, lp.correlate_languages(profiles), read_typology())
    assert {row["languages"] for row in rows} == {4}
    assert [row["feature"] for row in rows[:8]] == [lp.ALL, *FEATURES, lp.FAMILY, lp.WORDS]
    assert len(rows) == 3 * 8
    tested = [row for row in rows if np.isfinite(row["p"])]
    assert all(row["floor"] <= row["p"] <= row["q"] <= 1 for row in tested)
    assert lp.typology_rows(profiles[2:], [], read_typology()) == []  # es, zh and es-drop


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    root = tmp_path_factory.mktemp("languages")
    sets = ["crossed:en", "crossed:es", "crossed:zh", "crossed:tr", "crossed:fi", "crossed:es-drop"]
    model = save_tiny("llama", root / "model")
    return root, ["--model_id", model, "--output_dir", str(root / "out"), "--sets", *sets]


def test_the_study_makes_what_is_missing_and_says_what_it_cannot_measure(studied, capsys):
    root, argv = studied
    assert language_study.main([*argv, "--prompts_per_category", "12"]) == 0
    out = capsys.readouterr().out
    assert "crossed:fi: not measured, 0 of 12 frames are matched" in out
    assert out.count(": made, it is not there") == 5 and "n = 4 languages" in out
    assert (root / "out" / "languages.png").stat().st_size > 10_000
    with open(root / "out" / "language_layers.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["set"] for row in rows} == {
        f"crossed:{c}" for c in ("en", "es", "zh", "tr", "es-drop")
    }
    assert language_study.main([*argv, "--prompts_per_category", "12"]) == 0
    assert capsys.readouterr().out.count("skipped, its run is there") == 5


def test_too_few_frames_are_refused_before_the_weights_are_read(studied, capsys):
    argv = [*studied[1], "--prompts_per_category", "7"]
    assert language_study.main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: no set has 8 matched frames") and err.count("\n") == 1
