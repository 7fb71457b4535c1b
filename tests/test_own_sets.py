"""Sets of one's own: any categories, contrasts, roles, from a CSV to figures and comparisons."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import activation_analysis
import analyze_results
import compare_base_instruct
import experiment
import interventions
import visualize_results
from rolecircuits.edits import candidates
from rolecircuits.inputs.categories import Prompt
from rolecircuits.inputs.errors import UserError
from rolecircuits.inputs.prompt_sets import built_in_prompts, cut_prompts
from rolecircuits.stats import contrasts, indices, resampling, role_tests, run_pairs, units
from rolecircuits.stats.index_inference import infer_indices
from synthetic import make_run, save_run
from tiny_models import save_tiny

FIVE = ("robot", "stone", "dog", "child", "king")
FRAMES = (
    *("Where does the {} live?", "What does the {} eat?", "How old is the {}?"),
    *("Can the {} swim?", "Is the {} hungry?", "Why did the {} leave?", "Who found the {}?"),
)


def write_five(path, frames=FRAMES, names=FIVE):
    """A crossed CSV of one's own, one filler a frame."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["category", "text", "frame"])
        for i, frame in enumerate(frames):
            writer.writerows([name, frame.format(name), f"f{i}"] for name in names)
    return str(path)


def crossed_run(effects, n_frames=12, n_layers=3, seed=0):
    """A synthetic crossed run of FIVE; entropies are scaled by 1 - effects.get(category, 0)."""
    texts = [(f"f{i}", name, f"w{i} {name} x") for i in range(n_frames) for name in FIVE]
    chosen = [Prompt(f"p{k}", name, -1, text, f) for k, (f, name, text) in enumerate(texts)]
    run = make_run(n_layers=n_layers, n_heads=2, effect=0, seed=seed, prompts=chosen)
    factor = np.array([1 - effects.get(name, 0.0) for name in run.category.tolist()])
    run.entropy *= factor[:, None, None, None].astype(np.float32)
    return run


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_five_categories_go_from_csv_to_figures_and_comparison(here, capsys):
    model, prompts = save_tiny("llama", here / "model"), write_five("five.csv")
    base = ["--model_id", model, "--prompts", prompts, "--raw", "none", "--output_dir", "runs"]
    assert activation_analysis.main([*base, "--output_type", "base"]) == 0
    assert activation_analysis.main([*base, "--prompt_format", "chat"]) == 0
    asked = ["--contrast", "robot-stone", "dog-king"]
    assert analyze_results.main(["--input_dir", "runs/latest_run", *asked]) == 0
    out = capsys.readouterr().out
    assert "robot-stone" in out and "RFC: " not in out
    tables = Path("analysis_results", Path("runs/latest_run").resolve().name)
    rows = read_csv(tables / "contrasts.csv")
    assert {(row["contrast"], row["paired"], row["n"]) for row in rows} == {
        ("robot-stone", "True", "7"),
        ("dog-king", "True", "7"),
    }
    heads = read_csv(tables / "head_ranking.csv")
    assert {"robot-stone_g", "dog-king_q", "slot_mass_robot", "slot_uniform"} <= set(heads[0])
    argv = ["--input_dir", "runs/latest_run", "--output_dir", "figures", *asked]
    assert visualize_results.main(argv) == 0
    names = sorted(path.name for path in Path("figures").glob("*.png"))
    assert len(names) == 11 and "visualization_10_slot_attention.png" in names
    drawn = read_csv("figures/data/visualization_2_heatmaps.csv")
    assert {(row["category"], row["minus"]) for row in drawn} == {
        ("robot", "stone"),
        ("dog", "king"),
    }
    argv = ["--base_dir", "runs/latest_base", "--instruct_dir", "runs/latest_run", *asked]
    assert compare_base_instruct.main(argv) == 0
    made = {path.name for path in Path("comparison_results").iterdir()}
    assert "contrasts_comparison.png" in made and "detailed_comparison.csv" not in made
    compared = read_csv("comparison_results/contrast_comparison.csv")
    assert len(compared) == 2 * 3 and {"diff_estimate", "instruct_q"} <= set(compared[0])
    summary = json.loads(Path("comparison_results/comparison_summary.json").read_text())
    assert summary["bootstrap"]["unit"] == "frames" and summary["differences"] == {}
    for key, column in (("mean", "diff_estimate"), ("min", "diff_estimate")):
        values = [float(row[column]) for row in compared if row["contrast"] == "dog-king"]
        expected = {"mean": np.mean, "min": np.min}[key](values)
        assert summary["contrasts"]["dog-king"][key] == pytest.approx(expected, abs=1e-9)


def test_a_planted_contrast_is_found_and_a_null_one_is_not():
    run = crossed_run({"robot": 0.4}, n_frames=24)
    chosen = contrasts.available_contrasts(run.category, ["robot-stone", "dog-king"])
    rows = role_tests.contrast_layers(run, chosen)
    planted, null = (
        [row for row in rows if row["contrast"] == name and row["kind"] == "normalised"]
        for name in chosen
    )
    assert all(row["q"] < 0.01 and row["low"] > 0 for row in planted)
    assert all(row["p_max"] > 0.05 for row in null)
    values = units.frame_values(run, indices.layer_values(run))
    by_hand = values[24:48].mean(axis=0) - values[:24].mean(axis=0)
    assert [row["estimate"] for row in planted] == pytest.approx(by_hand.tolist())


def test_roles_give_the_indices_of_other_names():
    run = crossed_run({"robot": 0.5, "dog": 0.1}, n_frames=24)
    renamed = run.rename({"robot": "self_referent", "stone": "neutral", "dog": "confounder"})
    found = role_tests.infer_layers(renamed)
    values = units.frame_values(run, indices.layer_values(run))
    category = units.labels_of(run)[0]
    mean = {name: values[category == name].mean(axis=0) for name in FIVE}
    np.testing.assert_allclose(found["rfc"]["estimate"], 1 - mean["robot"] / mean["stone"])
    expected = (mean["dog"] - mean["robot"]) / mean["stone"]
    np.testing.assert_allclose(found["rsi"]["estimate"], expected)
    assert (found["rfc"]["q"] < 0.01).all() and list(renamed.counts)[:3] == [
        *("self_referent", "confounder", "neutral")
    ]
    assert run.counts["robot"] == 24, "the run itself keeps its names"


def test_without_contrasts_the_first_category_meets_every_other_one():
    run = crossed_run({})
    assert list(contrasts.available_contrasts(run.category)) == [
        *("robot-stone", "robot-dog", "robot-child", "robot-king")
    ]
    usual = make_run(n_layers=1, n_heads=1, per_category=2)
    assert list(contrasts.available_contrasts(usual.category)) == list(contrasts.CONTRASTS)


BAD_CONTRASTS = {
    "robot": "must be two categories with one '-' between; there are robot, stone",
    "robot-stone-dog": "must be two categories",
    "robot-cat": "unknown category 'cat'; there are robot, stone, dog, child, king",
    "dog-dog": "the two categories must differ",
}


@pytest.mark.parametrize("asked", BAD_CONTRASTS)
@pytest.mark.parametrize("script", [analyze_results, visualize_results])
def test_bad_contrasts_are_refused_in_one_line(here, capsys, script, asked):
    path = save_run(crossed_run({}, n_frames=3, n_layers=1), here / "runs")
    assert script.main(["--input_dir", str(path), "--contrast", asked]) == 2
    err = capsys.readouterr().err
    assert f"--contrast {asked}: {BAD_CONTRASTS[asked]}" in err and err.count("\n") == 1
    assert not list(here.rglob("analysis_results/**/*.csv"))


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        ("boss=robot", "'boss=robot' is not ROLE=NAME with a role of self_referent"),
        ("self_referent", "is not ROLE=NAME"),
        ("neutral=a/b", "category 'a/b'"),
        ("neutral=dog,neutral=king", "given twice"),
        ("neutral=cat", "has no such category; it has robot, stone, dog, child, king"),
    ],
)
def test_bad_roles_are_refused_in_one_line(here, capsys, roles, said):
    path = save_run(crossed_run({}, n_frames=3, n_layers=1), here / "runs")
    argv = ["--input_dir", str(path), "--roles", roles]
    try:
        code = analyze_results.main(argv)
    except SystemExit as stopped:
        code = stopped.code
    err = capsys.readouterr().err
    assert code == 2 and said in err and err.count("\n") == 1


def test_a_role_that_the_run_has_itself_is_refused():
    run = make_run(n_layers=1, n_heads=1, per_category=2)
    with pytest.raises(UserError, match="has a neutral itself"):
        run.rename({"confounder": "neutral"})


def deixis_run(interaction, control=0.0, seed=0):
    """A synthetic deixis run; entropies carry person, turn, and these interactions."""
    chosen = cut_prompts(built_in_prompts("deixis"), 36)
    run = make_run(n_layers=2, n_heads=2, effect=0, seed=seed, prompts=chosen)
    factor = np.ones(len(chosen))
    for i, prompt in enumerate(chosen):
        person, turn = prompt.category.split("_")
        factor[i] -= 0.1 * (person == "you") + 0.2 * (turn == "assistant")
        factor[i] -= interaction * (prompt.category in ("you_user", "i_assistant"))
        factor[i] -= control * (prompt.category in ("third_user", "it_assistant"))
    run.entropy *= factor[:, None, None, None].astype(np.float32)
    return run


def test_person_and_turn_cancel_in_the_interaction_and_the_control_stays_apart(here, capsys):
    for interaction, found in ((0.0, False), (0.3, True)):
        run = deixis_run(interaction)
        chosen = contrasts.available_contrasts(run.category)
        assert list(chosen) == ["about_model", "control_third_it"]
        tests = role_tests.contrast_heads(run, chosen)
        assert (tests["about_model"]["p_max"] < 0.01).any() == found
        assert not (tests["control_third_it"]["p_max"] < 0.01).any()
    path = save_run(deixis_run(0.1, 0.1), here / "runs")
    assert analyze_results.main(["--input_dir", str(path)]) == 0
    out = capsys.readouterr().out
    assert "about_model: interaction of person and turn" in out and "(the control)" in out
    assert "root mean square over layers: about_model" in out


def test_the_interaction_by_hand():
    run = deixis_run(0.05)
    values = units.frame_values(run, indices.layer_values(run))
    category, unit = units.labels_of(run)
    mean = {name: values[category == name].mean(axis=0) for name in run.counts}
    by_hand = (mean["you_assistant"] - mean["i_assistant"]) - (mean["you_user"] - mean["i_user"])
    contrast = contrasts.INTERACTIONS["about_model"]
    found = contrasts.compare_categories(values, category, unit, contrast, 99)
    np.testing.assert_allclose(found["estimate"], by_hand / 2)


def test_an_interaction_needs_frames():
    run = deixis_run(0.0)
    run.config["prompts"]["crossed"] = False
    with pytest.raises(UserError, match="needs a crossed set"):
        role_tests.contrast_heads(run, contrasts.available_contrasts(run.category))


def test_the_frame_is_the_unit_of_every_table_of_a_crossed_run():
    """Three copies of every prompt (fillers) add no certainty: intervals stay as they are."""
    one = cut_prompts(built_in_prompts("crossed"), 36)
    run = make_run(n_layers=2, n_heads=2, effect=0.3, prompts=one)
    copies = run.take(np.tile(np.arange(len(one)), 3))
    copies.filler = np.repeat(["a", "b", "c"], len(one))
    run.filler = np.repeat("a", len(one))
    single, triple = (role_tests.infer_layers(each) for each in (run, copies))
    for index in ("rfc", "rsi"):
        for part in ("estimate", "low", "high", "p", "p_max"):
            np.testing.assert_allclose(single[index][part], triple[index][part], rtol=1e-4)
    naive = infer_indices(indices.layer_values(copies), copies.category)
    wide = single["rfc"]["high"] - single["rfc"]["low"]
    assert (naive["rfc"].high - naive["rfc"].low < 0.7 * wide).all()


def test_halves_are_halves_of_frames_and_the_plan_names_the_prompts_that_did_not_choose():
    run = make_run(n_layers=2, n_heads=4, prompts=cut_prompts(built_in_prompts("crossed"), 72))
    plan = candidates.select_candidates(run, 2)
    held = np.isin(run.prompt_id, plan["held_out"])
    of_frame = {frame: set(held[run.frame == frame]) for frame in run.frame.tolist()}
    assert all(len(chosen) == 1 for chosen in of_frame.values()), "a frame is never split"
    assert sum(chosen == {True} for chosen in of_frame.values()) == 18
    values = units.frame_values(run, indices.prompt_values(run))
    category, unit = units.labels_of(run)
    frames = [name for name, chosen in of_frame.items() if chosen == {True}]
    order = list(dict.fromkeys(run.frame.tolist()))
    rows = np.isin(unit, [order.index(name) for name in frames])
    other, own = (values[rows & (category == c)] for c in ("self_referent", "confounder"))
    for row in plan["selection"]:
        at = row["layer"], row["head"]
        g = contrasts.hedges_g(own[(slice(None), *at)], other[(slice(None), *at)], True)
        assert row["g_held_out"] == pytest.approx(float(g))
    plain = make_run(n_layers=2, n_heads=4, per_category=10)
    assert len(candidates.select_candidates(plain, 2)["held_out"]) == 20


def test_a_run_says_which_category_has_which_role():
    run = crossed_run({}, n_frames=3, n_layers=1)
    renamed = run.rename({"robot": "self_referent", "stone": "neutral"})
    assert "self_referent = robot; neutral = stone" in renamed.label
    assert run.rename({}) is run and "robot" not in run.label


def test_unequal_fillers_weigh_frames_and_leave_intervals_of_edits_defined():
    """One frame has a second filler: a frame still counts once, and effects keep their interval."""
    one = cut_prompts(built_in_prompts("crossed"), 37)
    run = make_run(n_layers=2, n_heads=2, prompts=one)
    values = units.frame_values(run, indices.layer_values(run))
    category = units.labels_of(run)[0]
    by_hand = indices.index_values(values, category)["rfc"]
    np.testing.assert_allclose(indices.layer_indices(run)["rfc"], by_hand)
    unit = units.units_of(run)
    effects = np.random.default_rng(0).uniform(0, 1, (len(one), 1))
    low, high = resampling.infer_mean(effects, run.category, unit, n_resamples=999)[1:3]
    assert np.isfinite([low, high]).all() and low < effects.mean() < high


def test_two_frames_have_no_effect_size():
    values = np.random.default_rng(1).normal(size=(2, 5))
    assert np.isnan(contrasts.hedges_g(values, values[::-1] + 1, True)).all()
    assert np.isfinite(contrasts.hedges_g(np.eye(3), 1 - np.eye(3) * 0.3, True)).any()


def test_a_text_in_both_turns_is_two_prompts_of_a_comparison():
    run = make_run(n_layers=1, n_heads=1, per_category=4)
    for i, row in enumerate(run.prompts):
        row |= {"text": f"t{i // 2}", "turn": ("user", "assistant")[i % 2]}
    matched, _ = run_pairs.match_runs(run, run)
    assert len(matched["base"].category) == 16


def test_a_plan_is_measured_on_the_prompts_that_did_not_choose_it(here, capsys):
    model = save_tiny("llama", here / "model")
    fed = ["--model_id", model, "--prompts", "crossed", "--prompts_per_category", "12"]
    argv = [*fed, "--output_dir", "runs"]
    assert activation_analysis.main([*argv, "--raw", "none"]) == 0
    assert analyze_results.main(["--input_dir", "runs/latest_run", "--top_k", "1"]) == 0
    run = Path("runs/latest_run").resolve().name
    plan = f"analysis_results/{run}/ablation_candidates.json"
    assert interventions.main([*argv, "--config_file", plan, "--held_out"]) == 0
    held = set(json.loads(Path(plan).read_text())["held_out"])
    lines = Path("runs/latest_intervention/baseline/prompts.jsonl").read_text().splitlines()
    assert {json.loads(line)["id"] for line in lines} == held and len(held) == 4 * 6
    capsys.readouterr()
    assert interventions.main([*argv, "--held_out"]) == 2
    assert "--held_out needs --config_file" in capsys.readouterr().err
    other = ["--model_id", model, "--config_file", plan, "--held_out"]
    assert interventions.main(other) == 2
    assert "none of the plan's prompts is in this prompt set" in capsys.readouterr().err
    content = json.loads(Path(plan).read_text())
    del content["held_out"]
    Path(plan).write_text(json.dumps(content))
    assert interventions.main([*argv, "--config_file", plan, "--held_out"]) == 2
    assert "held_out is missing" in capsys.readouterr().err


def test_answers_record_the_prompts_that_were_fed_and_say_what_was_left_out(here, capsys):
    model, names = save_tiny("llama", here / "model"), ("robot", "Xylophonist")
    prompts = write_five("own.csv", frames=FRAMES[:1], names=names)
    with open(prompts, "a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [["robot", "Is it old?", "g"], ["Xylophonist", "Is it new?", "g"]]
        )
    argv = ["--model_id", model, "--prompts", prompts, "--max_tokens", "1", "--output_dir", "runs"]
    assert experiment.main(argv) == 0
    out = capsys.readouterr().out
    assert "note: frames not matched under this tokenizer: f0" in out
    assert "2 prompts answered once" in out
    config = json.loads(Path("runs/latest_generation/experiment_config.json").read_text())
    assert config["prompts"]["n"] == 2 and list(config["prompts"]["frames_left_out"]) == ["f0"]
