"""cross_model_correlation.py: correlations by hand, shifts along depth, files of others, files that
are broken.
"""

import csv

import numpy as np
import pytest
from scipy import stats

import cross_model_correlation as cross
from rolecircuits.stats import profiles


def write_comparison(folder, rfc, rsi, **more):
    folder.mkdir(parents=True, exist_ok=True)
    columns = {
        "layer": range(len(rfc)),
        "rfc_mean_base": np.zeros(len(rfc)),
        "rfc_diff": rfc,
        "rsi_diff": rsi,
    } | more
    with open(folder / profiles.FILE, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return folder


def read_rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_correlations_agree_with_scipy():
    a, b = np.random.default_rng(0).normal(size=(2, 24))
    found = profiles.correlate_profiles(a, b)
    assert found["pearson"][0] == pytest.approx(stats.pearsonr(a, b).statistic)
    assert found["spearman"][0] == pytest.approx(stats.spearmanr(a, b).statistic)
    by_hand = [abs(stats.pearsonr(a, np.roll(b, k)).statistic) for k in range(24)]
    assert found["pearson"][1] == pytest.approx(np.mean(np.array(by_hand) >= by_hand[0] - 1e-12))


def test_shifts_keep_their_level_on_smooth_profiles():
    """Two unrelated smooth profiles: the t-test of Pearson's r rejects far too often, the shifts do
    not.
    """
    rng = np.random.default_rng(1)
    naive, shifts = [], []
    for _ in range(300):
        a, b = (
            np.convolve(np.tile(x, 2), np.ones(8), "full")[32:64] for x in rng.normal(size=(2, 32))
        )
        naive.append(stats.pearsonr(a, b).pvalue < 0.05)
        shifts.append(profiles.correlate_profiles(a, b)["pearson"][1] < 0.05)
    assert np.mean(naive) > 0.2
    assert np.mean(shifts) < 0.08


def test_unequal_depth_is_compared_on_relative_depth():
    depth = np.linspace(0, 1, 32), np.linspace(0, 1, 12)
    a, b = profiles.align_profiles(*(3 * x - 1 for x in depth))
    assert len(a) == len(b) == 12
    np.testing.assert_allclose(a, b)


def test_constant_profile_has_no_correlation():
    assert np.isnan(profiles.correlate_profiles(np.ones(8), np.arange(8.0))["pearson"]).all()


def test_files_of_others_and_outputs(tmp_path, capsys):
    x = np.linspace(0, 6, 32)
    left = write_comparison(tmp_path / "a", np.sin(x) / 10, np.cos(x) / 10)
    shallow = np.linspace(0, 6, 28)
    right = write_comparison(
        tmp_path / "b", np.sin(shallow) / 10, -np.cos(shallow) / 10, rfc_diff_ci_low=[""] * 28
    )
    arguments = [
        "--comparison",
        f"a={left}",
        "--comparison",
        f"$b$={right}",
        "--output_dir",
        str(tmp_path / "out"),
    ]
    assert cross.main(arguments) == 0
    rows = {
        row["index"]: row for row in read_rows(tmp_path / "out" / "cross_model_correlations.csv")
    }
    assert (
        float(rows["rfc_diff"]["pearson_r"]) > 0.99
        and float(rows["rsi_diff"]["spearman_r"]) < -0.99
    )
    assert rows["rfc_diff"]["n_points"] == "28" and rows["rfc_diff"]["depth"] == "interpolated"
    assert (tmp_path / "out" / "cross_model_profiles.png").stat().st_size > 10_000
    assert "Spearman" in capsys.readouterr().out


def test_summary_by_hand(tmp_path):
    row = profiles.summarise_profile("m", "rfc_diff", np.array([-0.05, -0.01, 0.0, 0.02]))
    assert (row["share_below"], row["share_near_zero"], row["share_above"]) == (0.25, 0.5, 0.25)
    assert row["mean"] == pytest.approx(-0.01) and row["sd"] == pytest.approx(
        np.std([-0.05, -0.01, 0, 0.02], ddof=1)
    )


def test_one_model_is_summarised_without_correlations(tmp_path, capsys):
    folder = write_comparison(tmp_path / "a", [0.1, 0.2, 0.3], [0.1, 0.0, 0.1])
    assert cross.main(["--comparison", f"a={folder}", "--output_dir", str(tmp_path / "out")]) == 0
    assert "nothing to correlate" in capsys.readouterr().out
    assert not (tmp_path / "out" / "cross_model_correlations.csv").exists()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("layer,rfc_diff\n0,1\n1,2\n2,3\n", "column rsi_diff is missing"),
        (
            "layer,rfc_diff,rsi_diff\n0,1,1\n1,x,2\n2,3,3\n",
            "column rfc_diff, line 3: 'x' is not a finite number",
        ),
        ("layer,rfc_diff,rsi_diff\n0,1,1\n1,2,\n2,3,3\n", "column rsi_diff, line 3"),
        ("layer,rfc_diff,rsi_diff\n0,1,1\n1,inf,2\n2,3,3\n", "'inf' is not a finite number"),
        ("layer,rfc_diff,rsi_diff\n0,1,1\n2,2,2\n1,3,3\n", "column layer must count 0, 1, 2"),
        ("layer,rfc_diff,rsi_diff\n0,1,1\n", "needs at least 3"),
        ("layer,rfc_diff,rsi_diff\n0,1\n1,2,3\n2,3,3\n", "column rsi_diff, line 2"),
        ("", "column layer is missing"),
    ],
)
def test_broken_files_are_refused_in_one_line(tmp_path, capsys, text, what):
    (tmp_path / profiles.FILE).write_text(text)
    assert cross.main(["--comparison", f"m={tmp_path}", "--output_dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert what in error and profiles.FILE in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["a"], "expected NAME=DIR"),
        (["=x"], "expected NAME=DIR"),
        (["a=x", "a=y"], "used twice"),
        (["a=/nowhere"], "no such"),
    ],
)
def test_bad_arguments(capsys, arguments, what):
    assert cross.main(["--comparison", *arguments]) == 2
    assert what in capsys.readouterr().err
