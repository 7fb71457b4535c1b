"""analyze_results.py --compare: heads by what tuning changes, ours and as the study ranks them."""

import csv
import re

import numpy as np
import pytest

import analyze_results
from output_manager import load_run
from rolecircuits.inputs.prompt_sets import built_in_prompts, cut_prompts
from rolecircuits.stats import head_changes
from synthetic import make_run, save_run

PLACE = (2, 1)


def make_pair(folder, prompts=None, factor=0.6):
    """Two runs; tuning gives one head of layer 2 more entropy on self-referent prompts."""
    runs = []
    for seed, side in enumerate(("base", "instruct")):
        run = make_run(3, 4, effect=0.0, seed=seed, model_id=f"me/{side}", prompts=prompts)
        if side == "base":
            run.entropy[run.category == "self_referent", PLACE[0], PLACE[1]] *= factor
        runs.append(save_run(run, folder / side))
    return runs


@pytest.fixture(scope="module")
def crossed(tmp_path_factory):
    prompts = cut_prompts(built_in_prompts("crossed"), 36)
    return make_pair(tmp_path_factory.mktemp("changes"), prompts)


def test_the_planted_change_is_first_by_both_rankings_and_has_our_sign(
    crossed, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(analyze_results, "analyze", lambda *given: None)  # tested elsewhere
    arguments = ["--input_dir", crossed[0], "--compare", crossed[1], "--top_k", "2"]
    assert analyze_results.main([*map(str, arguments), "--output_dir", str(tmp_path)]) == 0
    with open(tmp_path / "head_changes.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    first = rows[0]
    assert (int(first["layer"]), int(first["head"])) == PLACE and len(rows) == 12
    assert first["rank"] == first["study_rank"] == "1" and float(first["p_max"]) < 0.01
    for name in ("estimate", "g", "did", "did_log_ratio"):
        assert float(first[name]) < 0, name  # more entropy: self-referent loses focus
    assert float(first["consistency"]) > 0.9
    assert first["model_base"] == "me/base" and first["model_instruct"] == "me/instruct"
    assert [int(row["rank"]) for row in rows] == list(range(1, 13))
    said = re.sub("written to .*", "", capsys.readouterr().out)
    assert max(map(len, said.splitlines())) <= 80
    said = " ".join(said.split())
    assert "the first 2 heads by either ranking" in said and "Spearman's r over all heads" in said


def test_the_columns_of_the_study_by_hand(crossed):
    """Written as loops over pairs, in the study's sign, from the entropies of the rows."""
    runs, _ = head_changes.match_pair(*map(load_run, crossed))
    found = head_changes.study_scores(runs)
    layer, head = 0, 3

    def entropies(run, name):
        rows = np.flatnonzero(run.category == name)
        return [run.entropy[i, layer, head, : run.n_tokens[i]].mean(dtype=float) for i in rows]

    own, other = (
        [entropies(run, name) for run in runs.values()] for name in ("self_referent", "neutral")
    )
    did = [(s1 - s0) - (n1 - n0) for s0, s1, n0, n1 in zip(*own, *other, strict=True)]
    assert found["did"][layer, head] == pytest.approx(-np.median(did))
    epsilon = 0.05 * np.median(own[0])
    logs = [
        np.log((s1 + epsilon) / (s0 + epsilon)) - np.log((n1 + epsilon) / (n0 + epsilon))
        for s0, s1, n0, n1 in zip(*own, *other, strict=True)
    ]
    assert found["did_log_ratio"][layer, head] == pytest.approx(-np.median(logs))
    share = np.mean(np.array(did) > 0)
    assert found["consistency"][layer, head] == pytest.approx(max(share, 1 - share))
    assert found["base_entropy"][layer, head] == pytest.approx(np.median(own[0]))
    parts = [np.abs(found["did_log_ratio"]), found["consistency"], -found["base_entropy"]]
    total = sum((x - x.mean()) / x.std(ddof=1) for x in parts)
    np.testing.assert_allclose(found["composite"], total)


def test_pairs_of_a_crossed_set_are_of_one_sentence(crossed):
    runs, _ = head_changes.match_pair(*map(load_run, crossed))
    run = runs["base"]
    cells = [
        [(run.frame[i], run.filler[i]) for i in np.flatnonzero(run.category == name)]
        for name in ("self_referent", "neutral")
    ]
    assert cells[0] == cells[1] and len(set(cells[0])) == 36


def test_a_head_without_entropy_has_no_rank_before_others():
    size = np.array([[0.1, np.nan], [3.0, 2.0]])
    np.testing.assert_array_equal(head_changes.rank_heads(size), [[3, 4], [1, 2]])
    assert np.isnan(head_changes.z_scores(np.full((2, 2), np.nan))).all()


def test_runs_that_do_not_match_are_refused_before_anything_is_written(crossed, tmp_path, capsys):
    other = save_run(make_run(2, 4), tmp_path / "other")
    arguments = ["--input_dir", crossed[0], "--compare", other, "--output_dir", tmp_path / "out"]
    assert analyze_results.main(list(map(str, arguments))) == 2
    assert "--input_dir" in capsys.readouterr().err and not (tmp_path / "out").exists()
    some = cut_prompts(built_in_prompts("crossed"), 12)
    kept = [prompt for prompt in some if prompt.category != "neutral"]
    pair = make_pair(tmp_path / "pair", kept)
    arguments = ["--input_dir", pair[0], "--compare", pair[1], "--output_dir", tmp_path / "out"]
    assert analyze_results.main(list(map(str, arguments))) == 2
    assert "there is no neutral prompt" in capsys.readouterr().err
