"""The design audit: what explains the entropies of a run besides the category.

Truth is planted in synthetic runs shaped like real ones: 120 original prompts, or crossed frames.
"""

import json
from types import SimpleNamespace

import numpy as np
import pytest

import activation_analysis
import analyze_results
import prompts
from rolecircuits.inputs.prompt_sets import built_in_prompts, cut_prompts
from rolecircuits.stats import audit, indices
from rolecircuits.stats.units import labels_of
from synthetic import make_run, save_run


def planted(labels_of_run, size=0.6, n_layers=6, **options):
    """A run whose entropies depend on labels: the k-th label (sorted) has 1 + size * k / n."""
    run = make_run(n_layers=n_layers, n_heads=6, effect=0.0, **options)
    labels = np.asarray(labels_of_run(run))
    levels = {label: i for i, label in enumerate(np.unique(labels))}
    factor = np.array([1 - size * levels[label] / len(levels) for label in labels])
    run.entropy *= factor[:, None, None, None].astype(np.float32)
    return run


def test_a_first_word_effect_is_flagged_in_both_formats():
    for form in ("raw", "chat"):
        found = audit.audit_design(planted(indices.first_words, prompt_format=form))
        assert found["flagged"] and "less than the first word" in found["verdict"]
        word, category = (found["variance"][name] for name in ("first word", "category"))
        assert word["median"] > 0.8 > 0.5 > category["median"]
        assert word["median_beyond"] > 0.5 and abs(category["median_beyond"]) < 0.1


def test_a_category_effect_is_not_flagged():
    found = audit.audit_design(planted(lambda run: run.category))
    assert not found["flagged"] and found["verdict"].startswith("no warning")
    factors = found["variance"]
    assert factors["category"]["median_beyond"] > 0.2 > abs(factors["first word"]["median_beyond"])


def test_no_effect_is_not_flagged():
    assert not audit.audit_design(planted(lambda run: run.category, size=0.0))["flagged"]


def test_categories_that_share_no_first_word_cannot_be_told_from_them():
    run = planted(lambda run: run.category)
    for row, name in zip(run.prompts, run.category, strict=True):
        row["text"] = f"{name} {row['text']}"
    found = audit.audit_design(run)
    assert found["flagged"] and "cannot be told apart" in found["verdict"]


def test_a_crossed_set_is_named_and_not_flagged_whatever_its_frames_do():
    chosen = cut_prompts(built_in_prompts("crossed"), 72)
    run = planted(lambda run: run.frame, prompts=chosen)
    found = audit.audit_design(run)
    assert not found["flagged"] and found["verdict"].startswith("crossed: every frame")
    assert "same first word" in found["verdict"] and found["frames"] == 36
    categories = found["clusters"]["categories"]
    assert {(item["prompts"], item["frames"]) for item in categories.values()} == {(72, 36)}
    assert found["clusters"]["median_icc"] > 0.8
    assert all(36 <= item["effective_n"] < 42 for item in categories.values())


def test_the_share_by_hand():
    values = np.array([[1.0], [3.0], [5.0], [7.0]])
    share = audit.variance_share(values, np.array(["a", "a", "b", "b"]))
    assert share[0] == pytest.approx(16 / 20)
    assert np.isnan(audit.variance_share(np.ones((4, 1)), np.array(list("aabb")))).all()


def test_adjusted_share_is_zero_on_average_where_nothing_is_explained():
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(16), 7)
    values = rng.normal(size=(112, 400))
    assert audit.adjusted_share(values, labels).mean() == pytest.approx(0, abs=0.01)
    plain = audit.variance_share(values, labels).mean()
    assert plain == pytest.approx(15 / 111, abs=0.01), "the share by chance, as the table says"


@pytest.mark.parametrize("icc", [0.0, 0.5, 0.9])
def test_correlation_inside_frames_is_found(icc):
    """Clusters of unequal size, known correlation; 300 layers are 300 data sets."""
    rng, sizes = np.random.default_rng(1), np.tile([2, 3, 8], 20)
    frame = np.repeat([f"f{i}" for i in range(60)], sizes)
    own = rng.normal(size=(len(frame), 300)) * np.sqrt(1 - icc)
    shared = rng.normal(size=(60, 300)).repeat(sizes, axis=0) * np.sqrt(icc)
    found = audit.describe_clusters(own + shared, np.full(len(frame), "x"), frame)
    assert found["median_icc"] == pytest.approx(icc, abs=0.04)
    item = found["categories"]["x"]
    mean_cluster = (sizes**2).sum() / sizes.sum()
    effect = 1 + (mean_cluster - 1) * max(found["median_icc"], 0)
    assert item["design_effect"] == pytest.approx(effect)
    assert item["effective_n"] == pytest.approx(len(frame) / effect)


def test_first_word_matching_takes_the_word_effect_out_and_leaves_the_role_effect():
    """Words differ in level and in how often a category uses them; the role effect is 10 %."""
    word = np.array((["how"] * 20 + ["what"] * 10) + (["how"] * 10 + ["what"] * 20))
    category = np.repeat(["self_referent", "neutral"], 30)
    level = np.where(word == "how", 0.8, 0.4) * np.where(category == "self_referent", 0.9, 1.0)
    noise = 1 + 0.001 * np.random.default_rng(2).normal(size=60)
    run = SimpleNamespace(category=category, crossed=False, prompt_format="raw")
    run.prompts = [{"text": f"{name} is it?"} for name in word]
    run.entropy = (level * noise * np.log(3))[:, None, None, None].astype(np.float32)
    run.visible_keys, run.n_tokens = np.array([[3]]), np.ones(60, int)
    run.span = np.tile([0, 1], (60, 1))
    matched = indices.index_values(indices.first_word_matched_values(run), category)["rfc"]
    plain = indices.layer_indices(run, "normalised")["rfc"]
    assert matched[0] == pytest.approx(0.1, abs=0.01) and plain[0] < -0.1
    assert sum(indices.first_word_weights(run).values()) == pytest.approx(1)


def test_words_of_one_prompt_say_nothing_and_no_shared_word_is_undefined():
    run = make_run(n_layers=2, n_heads=1, per_category=2)
    for i, row in enumerate(run.prompts):
        row["text"] = f"w{i} x"
    assert indices.first_word_weights(run) == {}
    assert np.isnan(indices.first_word_matched_values(run)).all()


def test_in_a_crossed_set_matching_changes_nothing():
    run = make_run(n_layers=2, n_heads=1, prompts=cut_prompts(built_in_prompts("crossed"), 36))
    matched = indices.first_word_matched_values(run)
    np.testing.assert_array_equal(matched, indices.layer_values(run, "normalised"))


def test_scripts_say_it_before_any_index_and_write_it(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save_run(planted(indices.first_words, n_layers=2, per_category=10), tmp_path / "runs")
    assert prompts.main(["--audit", str(path)]) == 0
    out = capsys.readouterr().out
    assert "WARNING: the category explains less than the first word" in out
    assert analyze_results.main(["--input_dir", str(path), "--output_dir", "out"]) == 0
    out = capsys.readouterr().out
    assert out.index("WARNING: the category") < out.index("strongest heads")
    assert out.index("WARNING: the category") < out.index("RFC: ")
    design = json.loads((tmp_path / "out" / "design.json").read_text())
    assert design["flagged"] and len(design["variance"]["first word"]["share"]) == 2
    assert prompts.main(["--audit", str(path), "--export", "x.csv"]) == 2
    assert "--export with --audit" in capsys.readouterr().err


def test_a_real_run_says_it_too(tmp_path, capsys):
    """The bundled model on 12 original prompts a category: its first words explain most."""
    argv = ["--prompts_per_category", "12", "--output_dir", str(tmp_path), "--raw", "none"]
    assert activation_analysis.main(argv) == 0
    out = capsys.readouterr().out
    assert out.index("WARNING: the category explains less") < out.index("prompts done")
    design = json.loads((tmp_path / "latest_run" / "design.json").read_text())
    assert np.median(design["variance"]["first word"]["share"][3:10]) > 0.9


def test_labels_of_a_crossed_run_are_frames():
    run = make_run(n_layers=1, n_heads=1, prompts=cut_prompts(built_in_prompts("crossed"), 72))
    category, unit = labels_of(run)
    assert len(category) == 4 * 36 and sorted(set(unit.tolist())) == list(range(36))
