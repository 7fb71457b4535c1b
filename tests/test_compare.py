"""Two runs, compared: the original's columns under its estimator, ours against loops, and every
reason to hesitate said."""

import csv
import dataclasses
import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

import compare_base_instruct
import output_manager
from compare_base_instruct import compare
from conftest import PROJECT
from rolecircuits.drawing import pair_figures, run_figures
from rolecircuits.drawing.study import study_run
from rolecircuits.inputs import prompt_sets
from rolecircuits.inputs.arguments import DEFAULT_SEED
from rolecircuits.inputs.errors import UserError
from rolecircuits.inputs.specs import same_weights
from rolecircuits.runs import npz
from rolecircuits.stats import (
    audit,
    contrasts,
    indices,
    original_study,
    profile_noise,
    resampling,
    run_pairs,
    units,
)
from rolecircuits.stats.resampling import bootstrap_counts
from synthetic import make_run, save_run

ORIGINAL = (
    "layer rfc_mean_base rfc_std_base rfc_ci_low_base rfc_ci_high_base rsi_mean_base rsi_std_base "
    "rsi_ci_low_base rsi_ci_high_base n_heads_base rfc_mean_instruct rfc_std_instruct "
    "rfc_ci_low_instruct rfc_ci_high_instruct rsi_mean_instruct rsi_std_instruct "
    "rsi_ci_low_instruct rsi_ci_high_instruct n_heads_instruct rfc_diff rsi_diff rfc_diff_ci_low "
    "rfc_diff_ci_high rsi_diff_ci_low rsi_diff_ci_high"
).split()
FILES = {
    "rfc_rsi_comparison.png",
    "rfc_rsi_differences.png",
    "detailed_comparison.csv",
    "comparison_summary.json",
    "profile_rows.npz",
    "data/rfc_rsi_comparison.csv",
    "data/rfc_rsi_differences.csv",
}


def make_pair(root, base=None, instruct=None, n_layers=3, n_heads=2, per_category=10):
    """Two run folders that differ in effect and seed; `base` and `instruct` overrule the arguments
    of make_run."""
    size = {"n_layers": n_layers, "n_heads": n_heads, "per_category": per_category}
    left = make_run(**size | {"effect": 0.2, "model_id": "me/base"} | (base or {}))
    right = make_run(**size | {"effect": 0.8, "seed": 1, "model_id": "me/chat"} | (instruct or {}))
    return save_run(left, root, "latest_base"), save_run(right, root, "latest_run")


def compare_folders(folders, output_dir):
    """`compare` of two run folders, loaded."""
    return compare(*map(output_manager.load_run, folders), output_dir)


def compare_by_command(base, instruct, output_dir):
    """The script's exit code for two run folders."""
    folders = {"--base_dir": base, "--instruct_dir": instruct, "--output_dir": output_dir}
    return compare_base_instruct.main([str(x) for pair in folders.items() for x in pair])


def read_table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """(base run, instruct run, output folder, summary) of one comparison of two models."""
    root = tmp_path_factory.mktemp("pair")
    runs = [output_manager.load_run(folder) for folder in make_pair(root)]
    return *runs, root / "out", compare(*runs, root / "out")


@pytest.fixture
def tables_only(monkeypatch):
    """Figures are left undrawn: most of a comparison's time, and not what most tests look at."""
    monkeypatch.setattr(compare_base_instruct, "fork_map", lambda *_: None)


def test_every_file_is_written_and_whole(compared):
    _, _, out, summary = compared
    assert {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()} == FILES
    assert all(
        (out / name).read_bytes().startswith(b"\x89PNG") for name in FILES if name.endswith("png")
    )
    assert json.loads((out / "comparison_summary.json").read_text("utf-8")) == json.loads(
        json.dumps(summary)
    )


def test_rows_behind_the_profiles_are_kept(compared):
    """profile_rows.npz: the index of its rows is the profile in the table."""
    base, instruct, out, _ = compared
    rows = npz.read_npz(out / "profile_rows.npz", profile_noise.ARRAYS)
    profile_noise.check_rows(out, rows, base.n_layers)
    assert len(set(rows["key"].tolist())) == len(base.prompts)
    table = read_table(out / "detailed_comparison.csv")
    for kind in profile_noise.ROW_KINDS:
        found = {
            side: indices.index_values(rows[f"{side}_{kind}"].astype(float), rows["category"])
            for side in ("base", "instruct")
        }
        for index in indices.INDICES:
            change = found["instruct"][index] - found["base"][index]
            written = [float(row[f"{index}_{kind}_diff_estimate"]) for row in table]
            np.testing.assert_allclose(change, written, atol=1e-6)


def test_valid_columns_come_first_and_the_originals_after_them_in_their_order(compared):
    rows = read_table(compared[2] / "detailed_comparison.csv")
    facts = ["model_base", "model_instruct", "set", "format_base", "format_instruct"]
    facts += ["run_base", "run_instruct"]
    parts = ("estimate", "low", "high", "null", "p", "q", "p_max")
    names = itertools.product(indices.KINDS, ("rfc", "rsi"), ("base", "instruct", "diff"), parts)
    valid = [f"{index}_{kind}_{run}_{part}" for kind, index, run, part in names]
    assert list(rows[0]) == [*facts, "layer", *valid, *ORIGINAL[1:]]
    assert rows[0]["model_base"] == "me/base" and rows[0]["set"] == "original"
    assert [row["layer"] for row in rows] == ["0", "1", "2"]


def test_original_columns_are_the_originals_arithmetic_over_all_heads(compared):
    base, instruct, out, _ = compared
    heads = {
        "base": original_study.original_head_indices(base),
        "instruct": original_study.original_head_indices(instruct),
    }
    for layer, row in enumerate(read_table(out / "detailed_comparison.csv")):
        for index in ("rfc", "rsi"):
            sides = [heads[run][index][layer] for run in ("base", "instruct")]
            for run, values in zip(("base", "instruct"), sides, strict=True):
                low, high = stats.t.interval(0.95, 1, loc=values.mean(), scale=stats.sem(values))
                expected = values.mean(), values.std(ddof=1), low, high
                found = [
                    float(row[f"{index}_{part}_{run}"])
                    for part in ("mean", "std", "ci_low", "ci_high")
                ]
                assert found == pytest.approx(expected, rel=1e-8)
            error = np.sqrt(sum(values.var(ddof=1) / 2 for values in sides))
            low, high = stats.t.interval(
                0.95, 1, loc=sides[1].mean() - sides[0].mean(), scale=error
            )
            found = [float(row[f"{index}_diff{end}"]) for end in ("", "_ci_low", "_ci_high")]
            assert found == pytest.approx((sides[1].mean() - sides[0].mean(), low, high), rel=1e-8)
        assert (row["n_heads_base"], row["n_heads_instruct"]) == ("2", "2")


def test_intervals_are_bootstrap_t_with_the_same_draw_for_both_runs(compared):
    """By hand for RFC of layer 1: resample prompts in both runs at once, divide every draw by its
    own standard error."""
    base, instruct, out, _ = compared
    row = read_table(out / "detailed_comparison.csv")[1]
    counts = bootstrap_counts(*units.labels_of(base), seed=DEFAULT_SEED)
    chosen = {name: np.flatnonzero(base.category == name) for name in ("self_referent", "neutral")}
    values = {name: indices.prompt_values(run)[:, 1].mean(axis=-1) for name, run in
              (("base", base), ("instruct", instruct))}  # fmt: skip

    def index_and_error(weights):
        """RFC(instruct) - RFC(base) and its delta-method error, prompts weighted by how often they
        were drawn."""
        n, index, slopes = 10, 0.0, {name: np.zeros(10) for name in chosen}
        for sign, x in ((1, values["instruct"]), (-1, values["base"])):
            h = {name: np.average(x[rows], weights=weights[rows]) for name, rows in chosen.items()}
            index += sign * (1 - h["self_referent"] / h["neutral"])
            slopes["self_referent"] -= sign * x[chosen["self_referent"]] / h["neutral"]
            slopes["neutral"] += (
                sign * x[chosen["neutral"]] * h["self_referent"] / h["neutral"] ** 2
            )
        variance = 0.0
        for name, rows in chosen.items():
            centre = np.average(slopes[name], weights=weights[rows])
            variance += np.average((slopes[name] - centre) ** 2, weights=weights[rows]) / (n - 1)
        return index, np.sqrt(variance)

    value, error = index_and_error(np.ones(len(counts[0])))
    draws = np.array([index_and_error(draw) for draw in counts])
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.sort(np.nan_to_num(np.abs(draws[:, 0] - value) / draws[:, 1], nan=np.inf))
    reach = t[int(np.ceil(0.95 * (len(counts) + 1))) - 1] * error
    found = [float(row[f"rfc_normalised_diff_{end}"]) for end in ("estimate", "low", "high", "p")]
    assert found == pytest.approx(
        [value, value - reach, value + reach, np.mean([True, *(t >= abs(value) / error)])], rel=2e-3
    )


@pytest.mark.parametrize("recorded_seed", [None, 7])
def test_figure_9_and_the_comparison_give_one_interval_of_a_run(recorded_seed):
    """Digit for digit, whatever seed the run itself was made with."""
    runs = {name: make_run(3, 2, per_category=10, seed=i) for i, name in enumerate(run_pairs.SIDES)}
    for run in runs.values():
        run.config |= {} if recorded_seed is None else {"seed": recorded_seed}
    estimates, _ = run_pairs.estimate_pair(runs)
    for side, run in runs.items():
        study = study_run(run)
        _, rows = run_figures.draw_figure("visualization_9_role_focus_separation", study)
        for row in rows:
            compared = estimates[row["kind"]][row["index"]][side]
            for part in ("estimate", "low", "high", "null", "p", "q", "p_max"):
                assert row[part] == compared[part][row["layer"]], (side, row["kind"], part)


def test_summary_says_what_the_table_says(compared):
    _, _, out, summary = compared
    rows = read_table(out / "detailed_comparison.csv")
    for kind in indices.KINDS:
        for index in ("rfc", "rsi"):
            values = np.array([float(row[f"{index}_{kind}_diff_estimate"]) for row in rows])
            low, high = (
                np.array([float(row[f"{index}_{kind}_diff_{end}"]) for row in rows])
                for end in ("low", "high")
            )
            entry = summary["differences"][kind][index]
            found = [entry[name] for name in ("mean", "min", "min_layer", "max", "max_layer")]
            assert found == pytest.approx(
                [values.mean(), values.min(), values.argmin(), values.max(), values.argmax()]
            )
            assert entry["layers_excluding_zero"] == ((low > 0) | (high < 0)).sum()
            q = [row[f"{index}_{kind}_diff_q"] for row in rows]
            if kind == "raw":
                assert set(q) == {""} and entry["layers_q_below_alpha"] is None
            else:
                assert entry["layers_q_below_alpha"] == sum(float(value) < 0.05 for value in q)
                p_max = [float(row[f"{index}_{kind}_diff_p_max"]) for row in rows]
                assert entry["layers_p_max_below_alpha"] == sum(p < 0.05 for p in p_max)
            assert entry["mean_ci_low"] < entry["mean"] < entry["mean_ci_high"]
    heads = [
        row
        for row in rows
        if float(row["rfc_diff_ci_low"]) > 0 or float(row["rfc_diff_ci_high"]) < 0
    ]
    assert summary["original"]["rfc"]["head_intervals_excluding_zero"] == len(heads)
    assert "not valid inference" in summary["original"]["warning"]


def test_figure_numbers_are_the_tables(compared):
    out = compared[2]
    table = read_table(out / "detailed_comparison.csv")
    for name, runs in (("comparison", 2), ("differences", 1)):
        rows = read_table(out / "data" / f"rfc_rsi_{name}.csv")
        assert len(rows) == 3 * runs * 2 * 3
        for row in rows:
            column, of_layer = (
                f"{row['index']}_{row['kind']}_{row['side']}",
                table[int(row["layer"])],
            )
            assert (
                row["estimate"] == of_layer[f"{column}_estimate"]
                and row["low"] == of_layer[f"{column}_low"]
            )
            assert row["null"] == of_layer[f"{column}_null"]
            assert row["kind"] == "raw" or float(row["null"]) == 0
            above = float(row["estimate"]) - float(row["null"])
            assert float(row["less_null_estimate"]) == pytest.approx(above, abs=1e-9)


def audit_notes(base, instruct):
    """What a comparison says of the design of both runs: once where it is the same."""
    verdicts = [audit.audit_design(run)["verdict"] for run in (base, instruct)]
    if verdicts[0] == verdicts[1]:
        return verdicts[:1]
    return [f"{side}: {text}" for side, text in zip(run_pairs.SIDES, verdicts, strict=True)]


def test_a_sharper_instruct_run_has_the_larger_index(tmp_path, tables_only):
    runs = [output_manager.load_run(folder) for folder in make_pair(tmp_path, per_category=30)]
    summary = compare(*runs, tmp_path / "out")
    assert summary["differences"]["normalised"]["rfc"]["mean_ci_low"] > 0
    assert summary["pair"] == "two models" and not summary["same_weights"]
    assert summary["notes"] == audit_notes(*runs) and summary["contrasts"] == {}


def test_a_run_against_itself_differs_by_exactly_0(tmp_path, tables_only):
    base, _ = make_pair(tmp_path)
    summary = compare_folders((base, base), tmp_path / "out")
    for row in read_table(tmp_path / "out" / "detailed_comparison.csv"):
        assert [row[f"rsi_raw_diff_{end}"] for end in ("estimate", "low", "high")] == [
            "0",
            "0",
            "0",
        ]
    assert summary["differences"]["raw"]["rsi"]["layers_excluding_zero"] == 0
    assert any("are the same run" in note for note in summary["notes"])


def test_prompts_are_matched_by_text_whatever_their_order(tmp_path):
    base, instruct = make_run(per_category=5), make_run(per_category=5, seed=1, effect=0.9)
    order = np.random.default_rng(0).permutation(20)
    runs, _ = run_pairs.match_runs(base, instruct)
    shuffled, notes = run_pairs.match_runs(base, instruct.take(order))
    assert [row["text"] for row in shuffled["base"].prompts] == [
        row["text"] for row in shuffled["instruct"].prompts
    ]
    assert np.array_equal(shuffled["instruct"].entropy, runs["instruct"].entropy, equal_nan=True)
    assert not any("left out" in note for note in notes)


def test_prompts_of_one_run_only_are_left_out_and_counted(tmp_path):
    base, instruct = make_run(per_category=6), make_run(per_category=4, seed=1)
    other = [
        {**row, "text": "Why?"} if row["id"] == "neutral_00" else row for row in instruct.prompts
    ]
    runs, notes = run_pairs.match_runs(base, dataclasses.replace(instruct, prompts=other))
    assert runs["base"].counts == {
        "self_referent": 4,
        "confounder": 4,
        "neutral": 3,
        "third_person": 4,
    }
    assert any(
        "base: left out 2 self_referent, 2 confounder, 3 neutral, 2 third_person" in note
        for note in notes
    )
    assert any(
        "instruct: left out 1 neutral" in note and "15 of 16 compared" in note for note in notes
    )


def test_the_same_text_in_another_category_does_not_match():
    base, instruct = make_run(per_category=2), make_run(per_category=2)
    instruct = instruct.rename({"neutral": "confounder", "confounder": "neutral"})
    with pytest.raises(UserError, match="no neutral prompt is in both runs"):
        run_pairs.match_runs(base, instruct)


def test_categories_of_one_run_only_are_left_out_and_two_must_be_left():
    """Without neutral prompts in one of the runs there is no RFC; what both hold is compared."""
    base, instruct = make_run(per_category=2), make_run(per_category=2)
    instruct = instruct.rename({"neutral": "weather"})
    runs, notes = run_pairs.match_runs(base, instruct)
    left = dict.fromkeys(["self_referent", "confounder", "third_person"], 2)
    assert runs["base"].counts == runs["instruct"].counts == left
    assert "base: left out 2 neutral, not in the other run; 6 of 8 compared" in notes
    assert "instruct: left out 2 weather, not in the other run; 6 of 8 compared" in notes
    names = ["confounder", "third_person"]
    instruct = instruct.rename({name: f"other {name}" for name in names})
    with pytest.raises(UserError, match="share 2 prompts of 1 categories; two needed"):
        run_pairs.match_runs(base, instruct)
    instruct = instruct.rename({"self_referent": "other self_referent"})
    with pytest.raises(UserError, match="share 0 prompts of 0 categories; two needed"):
        run_pairs.match_runs(base, instruct)


CONTRAST_FILES = {
    "contrasts_comparison.png",
    "contrast_comparison.csv",
    "data/contrasts_comparison.csv",
}


def matched(runs, asked):
    """What `estimate_contrasts` takes: both runs by name, and the contrasts asked for."""
    both = dict(zip(run_pairs.SIDES, runs, strict=True))
    return both, contrasts.available_contrasts(runs[0].category, asked)


def test_contrasts_asked_for_are_compared_prompt_by_prompt(tmp_path):
    runs = [output_manager.load_run(folder) for folder in make_pair(tmp_path)]
    asked = ["confounder-third_person", "self_referent-neutral"]
    summary = compare(*runs, tmp_path / "out", asked)
    files = (path for path in (tmp_path / "out").rglob("*") if path.is_file())
    written = {path.relative_to(tmp_path / "out").as_posix() for path in files}
    assert written == FILES | CONTRAST_FILES
    rows = read_table(tmp_path / "out" / "contrast_comparison.csv")
    assert [(row["contrast"], row["layer"]) for row in rows] == [
        (name, str(layer)) for name in asked for layer in range(3)
    ]
    values = {
        side: indices.layer_values(run, "normalised")
        for side, run in zip(("base", "instruct"), runs, strict=True)
    }
    values["diff"] = values["instruct"] - values["base"]
    for row in rows:
        first, second = row["contrast"].split("-")
        for side, value in values.items():
            a, b = (value[runs[0].category == name, int(row["layer"])] for name in (second, first))
            found = [float(row[f"{side}_{part}"]) for part in ("estimate", "low", "high", "p", "q")]
            assert found[0] == pytest.approx(a.mean() - b.mean(), rel=1e-6)
            low, high = resampling.infer_difference(
                a[:, None], b[:, None], first == "confounder", seed=DEFAULT_SEED
            )[1:3]
            assert found[1:3] == pytest.approx([low[0], high[0]], rel=1e-6)
            assert 0 < found[3] <= found[4] <= 1
    drawn = read_table(tmp_path / "out" / "data" / "contrasts_comparison.csv")
    assert len(drawn) == len(asked) * 3 * 3
    for row in drawn:
        (of_layer,) = (
            r for r in rows if (r["contrast"], r["layer"]) == (row["contrast"], row["layer"])
        )
        for part in ("estimate", "low", "high", "q"):
            assert row[part] == of_layer[f"{row['side']}_{part}"]
    figure, _ = pair_figures.draw_pair(
        pair_figures.CONTRASTS, run_pairs.estimate_contrasts(*matched(runs, asked)), summary
    )
    labels = [axes.get_xlabel() for axes in figure.axes]
    assert labels == ["", "", "layer", "layer"]
    assert "Dashed" not in " ".join(text.get_text() for text in figure.texts)  # none is drawn
    entry = summary["contrasts"]["self_referent-neutral"]
    means = [float(r["diff_estimate"]) for r in rows if r["contrast"] == "self_referent-neutral"]
    assert entry["mean"] == pytest.approx(np.mean(means))
    a, b = (
        values["diff"][runs[0].category == name].mean(axis=1, keepdims=True)
        for name in ("neutral", "self_referent")
    )
    low, high = resampling.infer_difference(a, b, seed=DEFAULT_SEED)[1:3]
    found = entry["mean_ci_low"], entry["mean_ci_high"]
    assert found == pytest.approx((low[0], high[0]), rel=1e-6)
    assert "base: left out" not in " ".join(summary["notes"])
    compare_base_instruct.print_summary(summary)


def test_runs_without_indices_are_compared_by_contrasts_alone(tmp_path):
    folders = make_pair(tmp_path)
    roles = {"neutral": "weather"}
    runs = [output_manager.load_run(folder).rename(roles) for folder in folders]
    summary = compare(*runs, tmp_path / "out")
    assert summary["differences"] == summary["original"] == {}
    assert list(summary["contrasts"]) == ["self_confounder", "confounder_third"]
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {
        "contrasts_comparison.png",
        "contrast_comparison.csv",
        "comparison_summary.json",
        "data",
    }
    compare_base_instruct.print_summary(summary)


def test_a_contrast_without_intervals_says_why_and_claims_none(tmp_path):
    folders = make_pair(tmp_path, per_category=4)
    runs = [output_manager.load_run(folder) for folder in folders]
    summary = compare(*runs, tmp_path / "out", ["self_referent-neutral"])
    (reason,) = summary["contrast_intervals_left_out"]
    assert reason == "self_referent-neutral: no interval and no test below 8 prompts: " + (
        "self_referent has 4"
    )
    caption = pair_figures.write_texts(summary, run_pairs.SIDES, summary["contrasts"])[2]
    assert reason in caption and "bootstrap" not in caption and "Hochberg" not in caption


def test_a_crossed_comparison_takes_frames_as_the_unit(tmp_path):
    prompts = prompt_sets.cut_prompts(prompt_sets.built_in_prompts("crossed"), 40)
    folders = make_pair(tmp_path, *[{"prompts": prompts}] * 2)
    runs = [output_manager.load_run(folder) for folder in folders]
    summary = compare(*runs, tmp_path / "out")
    assert summary["bootstrap"]["unit"] == "frames"
    (note,) = summary["notes"]
    assert note == "crossed: every frame holds every category, with the same first word and " + (
        "as many tokens; differences are taken inside frames"
    )
    by_hand, layer = [], 1
    for run in runs:
        values, frames = indices.layer_values(run, "normalised")[:, layer], np.unique(run.frame)
        h = {
            name: np.mean(
                [values[(run.category == name) & (run.frame == f)].mean() for f in frames]
            )
            for name in ("self_referent", "confounder", "neutral")
        }
        by_hand.append(
            [1 - h["self_referent"] / h["neutral"],
             (h["confounder"] - h["self_referent"]) / h["neutral"]]
        )  # fmt: skip
    row = read_table(tmp_path / "out" / "detailed_comparison.csv")[layer]
    found = [
        [float(row[f"{index}_normalised_{run}_estimate"]) for index in ("rfc", "rsi")]
        for run in run_pairs.SIDES
    ]
    np.testing.assert_allclose(found, by_hand, rtol=1e-6)
    diff = [float(row[f"{i}_normalised_diff_estimate"]) for i in ("rfc", "rsi")]
    np.testing.assert_allclose(diff, np.subtract(by_hand[1], by_hand[0]), rtol=1e-5)


def test_a_repeated_prompt_is_matched_once():
    base = make_run(per_category=2).take([0, 0, 1, 4, 4, 5])
    runs, _ = run_pairs.match_runs(base, make_run(per_category=2, seed=1))
    assert runs["instruct"].counts == {"self_referent": 2, "neutral": 2}


@pytest.mark.parametrize("other", [{"n_layers": 4}, {"n_heads": 3}])
def test_other_layers_or_heads_are_refused_and_nothing_is_written(tmp_path, capsys, other):
    base, instruct = make_pair(tmp_path, instruct=other)
    assert compare_by_command(base, instruct, tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert "base has 3 layers x 2 heads, instruct has" in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_missing_run_is_refused_in_one_line(tmp_path, capsys):
    assert (
        compare_base_instruct.main(
            ["--base_dir", str(tmp_path / "none"), "--output_dir", str(tmp_path / "out")]
        )
        == 2
    )
    err = capsys.readouterr().err
    assert (
        "none: no such folder" in err and err.count("\n") == 1 and not (tmp_path / "out").exists()
    )


def test_same_weights_are_called_two_framings_everywhere(tmp_path, capsys, monkeypatch):
    titles = []
    draw = pair_figures.draw_pair

    def watch(*arguments):
        figure, rows = draw(*arguments)
        titles.append(" ".join(text.get_text() for text in figure.texts).replace("\n", " "))
        return figure, rows

    monkeypatch.setattr(pair_figures, "draw_pair", watch)
    monkeypatch.setattr(
        compare_base_instruct,
        "fork_map",
        lambda function, items: [function(item) for item in items],
    )
    same = {"model_id": "bundled:smol"}
    base, instruct = make_pair(tmp_path, base=same, instruct={**same, "prompt_format": "chat"})
    assert compare_by_command(base, instruct, tmp_path / "out") == 0
    label = "same weights, two framings: raw | chat"
    summary = json.loads((tmp_path / "out" / "comparison_summary.json").read_text("utf-8"))
    assert summary["pair"] == label and summary["same_weights"]
    assert any("no effect of training" in note for note in summary["notes"])
    assert any("formats differ" in note for note in summary["notes"])
    assert label in capsys.readouterr().out
    for title in titles:
        assert (
            label in title
            and "bundled:smol, raw prompts" in title
            and "bundled:smol, chat prompts" in title
        )
        assert "n = 10 prompts per category" in title
    assert len(titles) == 2


@pytest.mark.parametrize(
    ("base", "instruct", "same"),
    [
        ({"id": "a", "weights_sha256": "x"}, {"id": "b", "weights_sha256": "x"}, True),
        ({"id": "a", "weights_sha256": "x"}, {"id": "a", "weights_sha256": "y"}, False),
        ({"id": "a", "revision": "1"}, {"id": "a", "revision": "1", "weights_sha256": "x"}, True),
        ({"id": "a", "revision": "1"}, {"id": "a", "revision": "2"}, False),
        ({"id": "a"}, {"id": "b"}, False),
    ],
)
def test_same_weights(base, instruct, same):
    runs = [
        dataclasses.replace(make_run(1, 1, per_category=1), config={"model": model})
        for model in (base, instruct)
    ]
    assert same_weights(*(run.config["model"] for run in runs)) is same


def test_other_tokenizers_and_token_counts_are_said(tmp_path):
    base, instruct = make_run(per_category=3), make_run(per_category=3, seed=1)
    base.config["model"]["tokenizer_sha256"], instruct.config["model"]["tokenizer_sha256"] = (
        "a",
        "b",
    )
    instruct.span[0, 0] += 1
    instruct.n_tokens[:2] += 1
    _, notes = run_pairs.match_runs(base, instruct)
    assert any("different tokenizers" in note for note in notes)
    assert any(
        "of 12 prompts 1 differ in tokens of their own text and 2 in tokens fed" in note
        for note in notes
    )


@pytest.mark.parametrize(
    ("n", "reason"),
    [
        (1, "RFC: not identified: no first word begins prompts of neutral and self_referent"),
        (7, "RFC: no interval and no test below 8 prompts: neutral has 7"),
    ],
)
def test_few_prompts_give_values_without_intervals_and_the_reason(tmp_path, tables_only, n, reason):
    summary = compare_folders(make_pair(tmp_path, per_category=n), tmp_path / "out")
    rows = read_table(tmp_path / "out" / "detailed_comparison.csv")
    assert all(
        row["rfc_normalised_diff_estimate"] and not row["rfc_normalised_diff_low"] for row in rows
    )
    assert all(not row["rsi_raw_base_high"] for row in rows)
    entry = summary["differences"]["normalised"]["rfc"]
    assert (
        entry["mean"] is not None
        and entry["mean_ci_low"] is None
        and entry["layers_excluding_zero"] is None
    )
    assert summary["intervals_left_out"][0].startswith(reason)
    assert not any(row["rfc_normalised_diff_p"] or row["rfc_normalised_base_q"] for row in rows)
    assert "NaN" not in (tmp_path / "out" / "comparison_summary.json").read_text("utf-8")


def test_without_confounders_only_rfc_is_compared(tmp_path):
    keep = np.flatnonzero(
        ~np.isin(make_run(per_category=8).category, ["confounder", "third_person"])
    )
    runs = [make_run(2, 2, per_category=8, seed=s, model_id=f"m{s}").take(keep) for s in (0, 1)]
    folders = [save_run(run, tmp_path, f"latest_{i}") for i, run in enumerate(runs)]
    summary = compare_folders(folders, tmp_path / "out")
    assert summary["intervals_left_out"] == [
        "RSI is undefined: no confounder prompts are in both runs"
    ]
    assert (
        summary["differences"]["raw"]["rsi"]["mean"] is None
        and summary["differences"]["raw"]["rfc"]["mean"] is not None
    )
    row = read_table(tmp_path / "out" / "detailed_comparison.csv")[0]
    assert (
        row["rsi_normalised_diff_estimate"] == ""
        and row["rsi_mean_base"] == ""
        and row["rfc_normalised_diff_low"] != ""
    )
    compare_base_instruct.print_summary(summary)


def test_one_head_has_no_spread_over_heads(tmp_path):
    compare_folders(make_pair(tmp_path, n_layers=1, n_heads=1), tmp_path / "out")
    (row,) = read_table(tmp_path / "out" / "detailed_comparison.csv")
    assert (
        row["rfc_std_base"],
        row["rfc_ci_low_base"],
        row["rsi_diff_ci_high"],
        row["n_heads_base"],
    ) == ("", "", "", "1")
    assert row["rfc_mean_base"] != "" and row["rfc_normalised_diff_low"] != ""


def test_a_layer_without_neutral_entropy_is_undefined_and_said(tmp_path, tables_only):
    base, instruct = (
        make_run(per_category=10, model_id="a"),
        make_run(per_category=10, seed=1, model_id="b"),
    )
    neutral = base.category == "neutral"
    base.entropy[neutral, 2] = np.where(np.isnan(base.entropy[neutral, 2]), np.nan, 0)
    folders = save_run(base, tmp_path, "latest_base"), save_run(instruct, tmp_path)
    summary = compare_folders(folders, tmp_path / "out")
    row = read_table(tmp_path / "out" / "detailed_comparison.csv")[2]
    assert (
        row["rfc_raw_base_estimate"],
        row["rfc_raw_diff_estimate"],
        row["rfc_raw_diff_low"],
        row["rfc_mean_base"],
    ) == ("", "", "", "")
    assert (
        row["n_heads_base"] == "0"
        and row["rfc_raw_instruct_estimate"] != ""
        and row["rfc_raw_instruct_low"] != ""
    )
    entry = summary["differences"]["raw"]["rfc"]
    assert (entry["layers_undefined"], entry["layers"]) == (1, 4) and entry[
        "mean_ci_low"
    ] is not None
    assert any(
        "undefined in some layers" in note and "RFC raw" in note for note in summary["notes"]
    )


def test_hostile_model_names_are_printed_and_drawn(tmp_path, capsys):
    name = "[/INST] $x$ :smile: \x1b[31m " + "long/" * 60
    folders = make_pair(tmp_path, base={"model_id": name}, n_layers=2)
    compare_base_instruct.print_summary(compare_folders(folders, tmp_path / "out"))
    out = capsys.readouterr().out
    assert r"[/INST] $x$ :smile: \x1b[31m long/" in out and "\x1b[31m" not in out


def test_same_command_again_gives_the_same_bytes(compared, tmp_path):
    base, instruct, out, _ = compared
    compare(base, instruct, tmp_path)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes(), name


def test_help_never_imports_a_heavy_package():
    script = "import sys, compare_base_instruct as c\n"
    script += "try:\n    c.main(['--help'])\nexcept SystemExit:\n    pass\n"
    script += "heavy = {'torch', 'transformers', 'pandas', 'scipy', 'matplotlib', 'rich'}\n"
    script += "print(*heavy & set(sys.modules), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "" and "--instruct_dir" in done.stdout


def test_a_whole_comparison_never_imports_torch(tmp_path):
    base, instruct = make_pair(tmp_path)
    script = "import sys, compare_base_instruct as c\ncode = c.main(sys.argv[1:])\n"
    script += "heavy = {'torch', 'transformers', 'transformer_lens', 'pandas', 'seaborn'}\n"
    script += "print(*heavy & set(sys.modules), file=sys.stderr)"
    command = [
        sys.executable,
        "-c",
        script + "\nsys.exit(code)",
        "--base_dir",
        base,
        "--instruct_dir",
        instruct,
    ]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "MPLBACKEND": "TkAgg", "DISPLAY": ""}
    done = subprocess.run(
        [*map(str, command), "--output_dir", str(tmp_path / "out")],
        cwd=PROJECT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "\n")
    assert {
        p.relative_to(tmp_path / "out").as_posix()
        for p in (tmp_path / "out").rglob("*")
        if p.is_file()
    } == FILES
