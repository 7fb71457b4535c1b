"""analyze_results.py on runs made of numbers: a planted head is found, nothing is found where
nothing is."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest

import analyze_results
import output_manager
from conftest import PROJECT
from rolecircuits.edits import candidates as candidates_module
from rolecircuits.edits.plan import read_plan
from rolecircuits.stats import indices, role_tests, units
from rolecircuits.stats.contrasts import hedges_g
from synthetic import make_run, save_run


def read_rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def plant_head(run, layer=2, head=1, factor=0.6):
    """Make one head's self-referent rows `factor` times as entropic."""
    chosen = run.category == "self_referent"
    run.entropy[chosen, layer, head] *= factor
    return run


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    path = save_run(
        plant_head(make_run(n_layers=4, n_heads=6, effect=0.0, seed=6)), folder / "runs"
    )
    return (
        analyze_results.analyze(output_manager.load_run(path), folder / "out", top_k=3),
        folder / "out",
        path,
    )


def test_planted_head_comes_first_and_survives(planted):
    found, folder, _ = planted
    top = read_rows(folder / "head_ranking.csv")[0]
    assert (top["rank"], top["layer"], top["head"]) == ("1", "2", "1")
    assert float(top["self_confounder_p_max"]) < 0.01 and float(top["self_confounder_q"]) < 0.01
    assert 0 < float(top["self_confounder_g_low"]) < float(top["self_confounder_g"])
    assert float(top["confounder_third_p_max"]) > 0.05
    assert any(
        line.startswith("secondary, self_confounder: 1 of 24 heads survive max-T")
        for line in found["verdicts"]
    )
    assert len(read_rows(folder / "head_ranking.csv")) == 24


def test_planted_head_is_chosen_and_confirmed_on_the_other_half(planted):
    plan = json.loads((planted[1] / "ablation_candidates.json").read_text())
    first = plan["selection"][0]
    assert (first["layer"], first["head"]) == (2, 1)
    assert first["g_selection"] > 1 and first["g_held_out"] > 1 and first["q_held_out"] < 0.05
    assert plan["source"]["model_id"] == "synthetic" and plan["source"]["run"] == planted[2].name


def test_held_out_g_is_measured_where_it_was_not_chosen():
    run = make_run(n_layers=3, n_heads=4, effect=0.0, seed=8)
    plan = candidates_module.select_candidates(run, top_k=2, seed=1)
    values, half = (
        indices.prompt_values(run),
        role_tests.split_units(*units.labels_of(run), seed=1),
    )
    for row in plan["selection"]:
        for key, part in (("g_selection", half), ("g_held_out", ~half)):
            groups = (
                values[part & (run.category == c), row["layer"], row["head"]]
                for c in ("confounder", "self_referent")
            )
            assert row[key] == pytest.approx(float(hedges_g(*groups)))


def test_candidates_file_has_the_agreed_format(planted):
    plan = json.loads((planted[1] / "ablation_candidates.json").read_text())
    assert plan["schema_version"] == 1 and set(plan) <= {
        "schema_version",
        "source",
        "selection",
        "interventions",
        "held_out",
        "note",
    }
    read = read_plan(str(planted[1] / "ablation_candidates.json"))
    assert [entry.layer for entry in read] == [e["layer"] for e in plan["interventions"]]
    candidates = [(e["layer"], e["head"]) for e in plan["interventions"]]
    assert len(set(candidates)) == 3, "controls are drawn when the plan is run"
    assert candidates == [(row["layer"], row["head"]) for row in plan["selection"]]
    for entry in plan["interventions"]:
        assert entry["type"] == "head" and entry["method"] == "zero_out"
        assert set(entry) == {"type", "layer", "head", "method", "role"}
    frequencies = [row["selection_frequency"] for row in plan["selection"]]
    assert frequencies == sorted(frequencies, reverse=True) and frequencies[0] == 1


def test_the_frequency_of_a_choice_is_counted_over_halves_of_whole_units():
    rng = np.random.default_rng(0)
    category, unit = np.repeat(["confounder", "third_person"], 12), np.tile(np.arange(12), 2)
    values = rng.normal(size=(24, 2, 3))
    values[:12, 1, 2] += 2
    found = candidates_module.select_often(
        (values, category, unit), ("confounder", "third_person"), 2, seed=3, n_subsamples=20
    )
    count, size = np.zeros((2, 2, 3))
    for draw in range(20):
        rows = role_tests.split_units(category, unit, [3, draw])
        assert rows.sum() == 12 and (rows[:12] == rows[12:]).all()
        g = np.abs(hedges_g(values[:12][rows[:12]], values[12:][rows[12:]], paired=True))
        size += g / 20
        count += (g >= np.sort(g, axis=None)[-2]) / 20
    np.testing.assert_allclose(found[0], count)
    np.testing.assert_allclose(found[1], size)
    assert found[0].sum() == pytest.approx(2) and found[0][1, 2] > 0.9


def test_few_prompts_choose_by_g_and_have_no_frequency():
    run = make_run(n_layers=2, n_heads=3, per_category=10, seed=2)
    plan = candidates_module.select_candidates(run, top_k=2)
    assert len(plan["interventions"]) == 2
    assert all(np.isnan(row["selection_frequency"]) for row in plan["selection"])
    g = [abs(row["g_selection"]) for row in plan["selection"]]
    assert g[0] >= g[1]


def test_split_halves_every_category_and_keeps_pairs():
    run = make_run(n_layers=1, n_heads=1)
    half = role_tests.split_units(*units.labels_of(run), seed=4)
    assert [half[run.category == c].sum() for c in run.counts] == [15, 15, 15, 15]
    left, right = (dict(zip(run.pair_id[m], half[m], strict=True)) for m in
                   (run.category == "confounder", run.category == "third_person"))  # fmt: skip
    assert left == right
    assert (half != role_tests.split_units(*units.labels_of(run), seed=5)).any()


def test_nothing_survives_where_nothing_is(tmp_path, capsys):
    path = save_run(make_run(n_layers=4, n_heads=6, effect=0.0, seed=5), tmp_path / "runs")
    assert (
        analyze_results.main(
            ["--input_dir", str(path), "--output_dir", str(tmp_path / "out"), "--top_k", "2"]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "self_confounder: no head survives max-T/BH at 0.05" in out
    assert "normalised RFC: no layer survives max-T/BH at 0.05" in out
    assert "2 heads, 0 confirmed on the held-out half" in out


def test_layer_metrics_are_those_of_the_indices(planted):
    found, folder, _ = planted
    run = plant_head(make_run(n_layers=4, n_heads=6, effect=0.0, seed=6))
    rows = read_rows(folder / "layer_metrics.csv")
    assert len(rows) == 5 * 2 * 4
    assert {row["kind"] for row in rows} == set(role_tests.LAYER_KINDS)
    for kind in indices.KINDS:
        for index, expected in indices.layer_indices(run, kind).items():
            chosen = [row for row in rows if row["kind"] == kind and row["index"] == index]
            np.testing.assert_allclose(
                [float(row["estimate"]) for row in chosen], expected, rtol=1e-6
            )
            null = indices.layer_null(run, kind)[index]
            np.testing.assert_allclose([float(row["null"]) for row in chosen], null, atol=1e-9)
    plain = indices.layer_indices(run)["rfc"]
    words = indices.index_values(indices.first_word_matched_values(run), run.category)["rfc"]
    for row in rows:
        if row["kind"] == "first_word_matched":
            assert (
                row["estimate"] and row["low"] == row["p"] == row["p_max"] == row["verdict"] == ""
            )
            continue
        if (row["kind"], row["index"]) == ("normalised", "rfc"):
            layer = int(row["layer"])
            assert float(row["within_words"]) == pytest.approx(words[layer])
            assert row["sign_disagrees"] == str(plain[layer] * words[layer] < 0)
        assert float(row["low"]) < float(row["estimate"]) < float(row["high"])
        assert (row["family"], row["prompts"], row["frames"]) == ("secondary", "60", "60")
        assert (
            0 < float(row["p"]) <= float(row["q"]) <= 1
            and float(row["p"]) <= float(row["p_max"]) + 1e-9
        )
    layer_2 = [
        row
        for row in rows
        if row["index"] == "rsi" and row["layer"] == "2" and row["kind"] == "normalised"
    ]
    assert float(layer_2[0]["p_max"]) < 0.01


def test_raw_p_tests_the_length_null_not_zero():
    """Equally spread attention on long confounders and short self prompts: raw RSI is far from 0,
    and that is length."""
    run = make_run(n_layers=2, n_heads=3, effect=0.0)
    run.n_tokens = np.where(run.category == "self_referent", 5, 8)
    run.span[:, 1] = run.n_tokens
    noise = np.random.default_rng(0).normal(size=run.entropy.shape[:3])[..., None]
    real = (np.arange(run.entropy.shape[-1]) < run.n_tokens[:, None])[:, None, None]
    run.entropy = np.where(real, 0.8 * np.log(run.visible_keys[0]) * np.exp(0.02 * noise), np.nan)
    found = role_tests.infer_layers(run, "raw")["rsi"]
    assert (found["null"] > 0.2).all() and (found["low"] > 0.1).all() and (found["p"] > 0.01).all()


def test_category_summary(planted):
    rows = read_rows(planted[1] / "category_summary.csv")
    assert [row["category"] for row in rows[:4]] == [
        "self_referent",
        "confounder",
        "neutral",
        "third_person",
    ]
    assert all(float(row["low"]) < float(row["estimate"]) < float(row["high"]) for row in rows)
    assert {row["n_prompts"] for row in rows} == {"30"}


def test_one_prompt_a_category_leaves_the_numbers_out(tmp_path, capsys):
    path = save_run(make_run(n_layers=2, n_heads=3, per_category=1), tmp_path / "runs")
    assert (
        analyze_results.main(["--input_dir", str(path), "--output_dir", str(tmp_path / "out")]) == 0
    )
    out = capsys.readouterr().out
    assert "no candidates" in out and "BH" not in out.split("no primary family")[1].split("each")[0]
    assert "secondary, self_neutral: not identified: no first word begins prompts of" in out
    for row in read_rows(tmp_path / "out" / "layer_metrics.csv"):
        assert row["low"] == row["p"] == row["mde"] == row["verdict"] == ""
    assert (
        json.loads((tmp_path / "out" / "ablation_candidates.json").read_text())["interventions"]
        == []
    )


def test_bad_requests_are_one_line(tmp_path, capsys):
    assert analyze_results.main(["--input_dir", str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert analyze_results.main(["--input_dir", "x", "--output_dir", str(tmp_path / "file")]) == 2
    assert "is a file" in capsys.readouterr().err


def test_run_folder_is_untouched_and_results_repeat(planted, tmp_path):
    found, _, path = planted
    before = sorted((p.name, p.stat().st_mtime_ns) for p in path.iterdir())
    again = analyze_results.analyze(output_manager.load_run(path), tmp_path / "out", top_k=3)
    assert sorted((p.name, p.stat().st_mtime_ns) for p in path.iterdir()) == before
    assert again["candidates"] == found["candidates"] and str(again["heads"]) == str(found["heads"])


@pytest.mark.parametrize("script", ["analyze_results.py", "cross_model_correlation.py"])
def test_nothing_imports_torch(script):
    code = f"import sys, {script[:-3]}, "
    code += "rolecircuits.stats.role_tests, rolecircuits.edits.candidates; "
    code += "sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROJECT)
