"""cross_model_correlation.py: correlations by hand, tests that hold below trends, the noise of
shared prompts, files of others, files that are broken."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

import cross_model_correlation as cross
from rolecircuits.drawing import profile_figure
from rolecircuits.inputs import prompt_sets
from rolecircuits.inputs.errors import UserError
from rolecircuits.runs import npz
from rolecircuits.stats import profile_noise, profile_tests, profiles
from synthetic import make_run


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


def detrend(values, degree):
    x = np.arange(len(values))
    return values - np.polyval(np.polyfit(x, values, degree), x)


def draw_walk(rng, n, trend):
    """AR(1) of 0.5 with a step of 5 standard deviations at a random depth, of either sign."""
    values = rng.normal(size=n)
    for i in range(1, n):
        values[i] = 0.5 * values[i - 1] + np.sqrt(0.75) * values[i]
    at = rng.uniform(0.2, 0.8) * n
    step = np.tanh((np.arange(n) - at) / 2) * rng.choice([-1, 1])
    return values + 2.5 * trend * step


def test_correlations_agree_with_scipy():
    a, b = np.random.default_rng(0).normal(size=(2, 24)) + np.linspace(0, 3, 24)
    for name, degree in profile_tests.TRENDS.items():
        found = profiles.correlate_detrended(a, b, degree)
        left, right = detrend(a, degree), detrend(b, degree)
        assert found.r == pytest.approx(stats.pearsonr(left, right).statistic), name
        shifted = [detrend(np.roll(right, k), degree) for k in range(24)]
        by_hand = [abs(stats.pearsonr(left, x).statistic) for x in shifted]
        assert found.shift_p == pytest.approx(np.mean(np.array(by_hand) >= by_hand[0] - 1e-12))
    r, shift_p = profiles.correlate_spearman(a, b)
    assert r == pytest.approx(stats.spearmanr(a, b).statistic) and 0 < shift_p <= 1


def test_degrees_of_freedom_by_hand():
    """V = tr(M A M B) / (tr(M A) tr(M B)), written as loops; p from t of 1 / V - 1."""
    rng = np.random.default_rng(4)
    n = 24
    a, b = (np.convolve(x, np.ones(5), "valid") for x in rng.normal(size=(2, n + 4)))
    x = np.arange(n)
    remover = np.stack([detrend(one, 2) for one in np.eye(n)])

    def matrix(values):
        left = detrend(values, 2)
        lags = [np.mean([left[i] * left[i + k] for i in range(n - k)]) for k in range(n)]
        return np.array([[lags[abs(i - j)] if abs(i - j) <= 8 else 0 for i in x] for j in x])

    left, right = remover @ matrix(a), remover @ matrix(b)
    dof = np.trace(left) * np.trace(right) / np.trace(left @ right) - 1
    found = profiles.correlate_detrended(a, b, 2)
    assert 1 < dof < n - 4
    assert found.dof == pytest.approx(dof)
    t = found.r * np.sqrt(dof / (1 - found.r**2))
    assert found.p == pytest.approx(2 * stats.t.sf(abs(t), dof))


def test_independent_layers_have_at_most_their_own_degrees_of_freedom():
    """A profile whose layers alternate carries no more than n - degree - 2."""
    a, b = np.tile([1.0, -1.0], 12), np.random.default_rng(0).normal(size=24)
    for degree in range(3):
        assert profiles.correlate_detrended(a, b, degree).dof <= 24 - degree - 2


def test_trends_make_unrelated_profiles_agree_and_the_quadratic_p_holds():
    """Two unrelated profiles with a step each: plain r rejects far too often, by shifts too."""
    rng = np.random.default_rng(1)
    plain, shifts, naive, used = [], [], [], []
    for _ in range(400):
        a, b = (draw_walk(rng, 32, trend=1) for _ in range(2))
        as_is, found = (profiles.correlate_detrended(a, b, degree) for degree in (0, 2))
        plain.append(as_is.p < 0.05)
        shifts.append(as_is.shift_p < 0.05)
        naive.append(stats.pearsonr(detrend(a, 2), detrend(b, 2)).pvalue < 0.05)
        used.append(found.p < 0.05)
    assert np.mean(shifts) > 0.3 and np.mean(naive) > 0.12
    assert 0.02 <= np.mean(used) <= 0.085


def test_related_profiles_are_found_below_their_trends():
    rng = np.random.default_rng(2)
    found = []
    for _ in range(100):
        shared, *own = (draw_walk(rng, 32, trend=0) for _ in range(3))
        steps = (draw_walk(rng, 32, trend=1) - draw_walk(rng, 32, trend=0) for _ in range(2))
        a, b = (3 * shared + x + 0.3 * step for x, step in zip(own, steps, strict=True))
        found.append(profiles.correlate_detrended(a, b, 2).p < 0.05)
    assert np.mean(found) > 0.8


def test_unequal_depth_is_compared_on_relative_depth():
    depth = np.linspace(0, 1, 32), np.linspace(0, 1, 12)
    a, b = profiles.align_profiles(*(3 * x - 1 for x in depth))
    assert len(a) == len(b) == 12
    np.testing.assert_allclose(a, b)
    rng = np.random.default_rng(0)
    deep, shallow = rng.normal(size=(2, 32)), rng.normal(size=(2, 12))
    aligned, other = profiles.align_profiles(deep, shallow)
    np.testing.assert_array_equal(other, shallow)
    for one, row in zip(aligned, deep, strict=True):
        np.testing.assert_allclose(one, np.interp(depth[1], depth[0], row))


def test_profiles_that_are_nothing_but_trend_have_no_correlation():
    layers, noise = np.arange(8.0), np.random.default_rng(0).normal(size=8)
    for degree in range(3):
        for nothing in (0.3 * layers**degree + 1, np.zeros(8)):
            assert np.isnan(profiles.correlate_detrended(nothing, noise, degree)).all()
        assert np.isnan(
            profiles.correlate_detrended(noise[: degree + 2], layers[: degree + 2], degree)
        ).all()
    assert np.isfinite(profiles.correlate_detrended(noise[:5], layers[:5] ** 4, 2)).all()
    assert np.isnan(profiles.correlate_spearman(np.ones(8), noise)).all()


def test_equal_profiles_correlate_fully():
    values = np.random.default_rng(0).normal(size=24)
    found = profiles.correlate_detrended(values, 2 * values + 1, 2)
    assert found.r == pytest.approx(1) and found.p < 1e-6 and found.shift_p == 1 / 24


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
        float(rows["rfc_diff"]["plain_r"]) > 0.99 and float(rows["rsi_diff"]["spearman_r"]) < -0.99
    )
    assert rows["rfc_diff"]["n_points"] == "28" and rows["rfc_diff"]["depth"] == "interpolated"
    assert (tmp_path / "out" / "cross_model_profiles.png").stat().st_size > 10_000
    printed = " ".join(capsys.readouterr().out.split())
    assert "quadratic" in printed and "r (p)" in printed and "read the quadratic r" in printed
    assert "note: read as original" in printed and "no joint resampling" not in printed
    assert rows["rfc_diff"]["kind"] == "original" and rows["rfc_diff"]["shared_rows"] == "0"
    assert rows["rfc_diff"]["plain_corrected_r"] == ""
    assert read_rows(tmp_path / "out" / "cross_model_summary.csv")[0]["kind"] == "original"


def test_summary_by_hand():
    values = np.array([-0.05, -0.01, 0.0, 0.02])
    row = profiles.summarise_profile("m", "rfc_diff", {"rfc_diff": values}, "sinkfree")
    assert (row["share_below"], row["share_near_zero"], row["share_above"]) == (0.25, 0.5, 0.25)
    assert row["mean"] == pytest.approx(-0.01) and row["sd"] == pytest.approx(
        np.std([-0.05, -0.01, 0, 0.02], ddof=1)
    )
    assert np.isnan(
        [row["interval_below"], row["interval_above"], row["interval_half_width"]]
    ).all()


def test_one_layer_that_makes_the_mean_is_named():
    """Median 0.01, deviations 0, 4.05, 0.01, 0.01, 0.02: their median is 0.01."""
    values = np.array([0.01, 4.06, 0.0, 0.02, -0.01])
    profile = {"rfc_diff": values, "rfc_diff_ci_low": values - 0.015}
    profile["rfc_diff_ci_high"] = values + np.array([0.015, 9, 0.015, 0.015, 0.005])
    row = profiles.summarise_profile("m", "rfc_diff", profile, "original")
    assert row["farthest_layer"] == 1 and row["farthest"] == 4.06
    assert row["farthest_mads"] == pytest.approx(405)
    assert row["mean_without"] == pytest.approx(0.005)
    assert (row["interval_below"], row["interval_above"]) == (1, 2)
    assert row["interval_half_width"] == pytest.approx(0.015)


def test_nulls_of_one_correlation_agree_with_scipy():
    a, b = np.random.default_rng(6).normal(size=(2, 24)).cumsum(axis=1)
    found = profile_tests.compare_nulls(a, b)
    plain = profiles.correlate_detrended(a, b, 0)
    assert found.independent_p == pytest.approx(stats.pearsonr(a, b).pvalue)
    assert 2 < found.effective_n == plain.dof + 2 < 24 and plain.p > found.independent_p
    changes = stats.pearsonr(np.diff(a), np.diff(b)).statistic
    assert found.differences_r == pytest.approx(changes)
    without = [stats.pearsonr(np.delete(a, i), np.delete(b, i)).statistic for i in range(24)]
    assert found.left_out_low == pytest.approx(min(without))
    assert found.left_out_high == pytest.approx(max(without))
    assert np.isnan(profile_tests.compare_nulls(np.ones(8), a[:8])).all()


@pytest.mark.parametrize("n", [24, 25])
def test_phase_randomised_profiles_by_hand(n):
    """The share of profiles with the spectrum of b and random phases that correlate as strongly."""
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, n)).cumsum(axis=1)
    spectrum, draws = np.fft.rfft(b), []
    for _ in range(4000):
        phases = np.exp(1j * rng.uniform(0, 2 * np.pi, len(spectrum)))
        phases[0] = 1
        if n % 2 == 0:
            phases[-1] = rng.choice([-1, 1])
        draws.append(np.corrcoef(a, np.fft.irfft(spectrum * phases, n))[0, 1])
    by_hand = np.mean(np.abs(draws) >= abs(np.corrcoef(a, b)[0, 1]))
    assert 0.05 < by_hand < 0.95
    assert profile_tests.phase_share(a, b) == pytest.approx(by_hand, abs=0.03)
    assert profile_tests.phase_share(a, 2 * a + 1) <= 0.001


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


def kinds_of(n, factor):
    """Columns of a table of this project: every kind has other numbers."""
    x = np.sin(np.linspace(0, 7, n))
    columns = {}
    for times, kind in enumerate(("normalised", "sinkfree"), 2):
        for index in ("rfc", "rsi"):
            columns[f"{index}_{kind}_diff_estimate"] = factor * times * x
            columns[f"{index}_{kind}_diff_low"] = factor * times * x - 0.5
            columns[f"{index}_{kind}_diff_high"] = factor * times * x + 0.5
    return x, columns


def test_the_kind_that_is_read(tmp_path):
    x, columns = kinds_of(24, 1)
    ours = write_comparison(tmp_path / "ours", x, x, rfc_diff_ci_low=x - 9, **columns)
    others = write_comparison(tmp_path / "others", x, x)
    for asked, used, times in ((None, "normalised", 2), ("sinkfree", "sinkfree", 3)):
        found, kind = profiles.read_profiles({"a": ours, "b": ours}, asked)
        assert kind == used
        np.testing.assert_allclose(found["a"]["rfc_diff"], times * x)
        np.testing.assert_allclose(found["b"]["rsi_diff_ci_high"], times * x + 0.5)
    for asked, names in ((None, "ab"), ("original", "a")):
        folders = dict(zip(names, (ours, others), strict=False))
        found, kind = profiles.read_profiles(folders, asked)
        assert kind == "original"
        np.testing.assert_allclose(found["a"]["rfc_diff_ci_low"], x - 9)
        assert "rsi_diff_ci_high" not in found["a"]
    with pytest.raises(
        UserError, match="others.*rfc_sinkfree_diff_estimate is missing; --kind sinkfree"
    ):
        profiles.read_profiles({"a": ours, "b": others}, "sinkfree")


def test_the_kind_is_said_everywhere(tmp_path, capsys):
    x, columns = kinds_of(24, 1)
    folder = write_comparison(tmp_path / "ours", x, x, **columns)
    named = ["--comparison", f"a={folder}", f"b={folder}", "--output_dir", str(tmp_path / "out")]
    assert cross.main([*named, "--kind", "sinkfree"]) == 0
    printed = capsys.readouterr().out
    assert "sink-free: Pearson" in printed and "read as original" not in printed
    for name in ("summary", "correlations"):
        assert read_rows(tmp_path / "out" / f"cross_model_{name}.csv")[0]["kind"] == "sinkfree"
    figure = profile_figure.plot_profiles(profiles.read_profiles({"a": folder})[0], "normalised")
    assert figure.axes[0].get_ylabel() == "RFC normalised, instruct - base"


def make_rows(rng, models, prompts, n=30, pairs=True, scale=0.02):
    """Arrays of profile_rows.npz for true differences of H_self [model][layer].

    prompts   [model][category, prompt, layer], the noise of each model's prompts
    """
    category = np.repeat(profile_noise.INDEX_CATEGORIES, n)
    unit = np.tile(np.arange(n), 3) if pairs else np.full(3 * n, -1)
    key = np.array([f"{name}{i}" for i, name in enumerate(category.tolist())])
    out = []
    for profile, noise in zip(models, prompts, strict=True):
        layers = len(profile)
        arrays = {"category": category, "key": key, "unit": unit}
        truth = np.ones((3, 1, layers)) * 0.5
        change = np.zeros((3, 1, layers))
        change[profile_noise.INDEX_CATEGORIES.index("self_referent")] = -0.5 * scale * profile
        for kind in profile_noise.ROW_KINDS:
            base = truth + 0.01 * rng.normal(size=(3, n, 1))
            arrays[f"base_{kind}"] = base.reshape(3 * n, layers).astype("f4")
            instruct = base + change + scale * noise
            arrays[f"instruct_{kind}"] = instruct.reshape(3 * n, layers).astype("f4")
        out.append(arrays)
    return out


def draw_models(rng, rho, size=0.7, layers=30, n=30):
    """Rows of two models whose true profiles correlate by rho, and nearly all of whose noise is
    that of the prompts both were given."""
    shared, *own = (draw_walk(rng, layers, trend=0) for _ in range(3))
    models = [np.sqrt(rho) * shared + np.sqrt(1 - rho) * x for x in own]
    spread = size * np.sqrt(n) * 0.35
    common = spread * rng.normal(size=(3, n, layers))
    prompts = [common + 0.2 * spread * rng.normal(size=common.shape) for _ in range(2)]
    return make_rows(rng, models, prompts, n)


@pytest.mark.parametrize(("rho", "truth"), [(0.0, 0.0), (0.7, 0.7)])
def test_the_noise_of_shared_prompts_is_taken_out(rho, truth):
    rng = np.random.default_rng(5)
    plain, corrected = [], []
    for seed in range(60):
        draws = profile_noise.draw_jointly(*draw_models(rng, rho), "sinkfree", 300, seed)
        plain.append(np.corrcoef(*draws.observed["rfc"])[0, 1])
        corrected.append(profile_noise.correct_correlation(draws, "rfc", 0)[0])
    assert np.mean(plain) > truth + (0.2 if rho == 0 else 0.05)
    assert np.isfinite(corrected).mean() > 0.9
    assert np.nanmean(corrected) == pytest.approx(truth, abs=0.1)


def test_too_much_noise_leaves_no_correlation():
    left, right = draw_models(np.random.default_rng(0), 0.7, size=6)
    draws = profile_noise.draw_jointly(left, right, "normalised", 300)
    r, *signal = profile_noise.correct_correlation(draws, "rfc", 2)
    assert np.isnan(r) and min(signal) < profile_noise.MIN_SIGNAL


def test_joint_draws_by_hand():
    """The same units in both models, whatever the order of their rows; pairs stay together."""
    rng = np.random.default_rng(3)
    left, right = draw_models(rng, 0.0, layers=4, n=5)
    order = rng.permutation(15)
    mixed = {name: array[order] for name, array in right.items()}
    draws = profile_noise.draw_jointly(left, mixed, "normalised", 20, seed=7)
    again = profile_noise.draw_jointly(left, right, "normalised", 20, seed=7)
    counts = profile_noise.bootstrap_counts(left["category"], left["unit"], 20, 7)
    assert draws.shared == 15 and draws.n_units == 5
    for model, rows in enumerate((left, right)):
        np.testing.assert_allclose(draws.resampled["rsi"][model], again.resampled["rsi"][model])
        for draw, times in enumerate(counts.astype(int)):
            drawn = np.repeat(np.arange(15), times)
            means = {}
            for side in ("base", "instruct"):
                values = rows[f"{side}_normalised"][drawn].astype(float)
                of = {
                    c: values[rows["category"][drawn] == c].mean(axis=0)
                    for c in set(left["category"])
                }
                means[side] = (of["confounder"] - of["self_referent"]) / of["neutral"]
            expected = means["instruct"] - means["base"]
            np.testing.assert_allclose(draws.resampled["rsi"][model][draw], expected, atol=1e-9)


def test_rows_of_a_crossed_set_are_its_frames():
    prompts = prompt_sets.cut_prompts(prompt_sets.built_in_prompts("crossed"), 12)
    run = make_run(n_layers=3, n_heads=1, prompts=prompts)
    rows = profile_noise.profile_rows({"base": run, "instruct": run})
    profile_noise.check_rows("rows", rows, 3)
    frames = set(run.frame.tolist())
    per_category = [rows["key"][rows["category"] == name].tolist() for name in run.counts]
    assert all(sorted(keys) == sorted(per_category[0]) for keys in per_category)
    assert len(set(zip(rows["key"].tolist(), rows["unit"].tolist(), strict=True))) == len(frames)
    others = [replace(prompt, text=f"{prompt.text} Why?") for prompt in prompts]
    other = make_run(n_layers=3, n_heads=1, prompts=others)
    changed = profile_noise.profile_rows({"base": other, "instruct": other})
    assert not set(changed["key"].tolist()) & set(rows["key"].tolist())  # equal names of frames
    assert profile_noise.missing_rows_reason(rows, rows) is None


def write_pair(tmp_path, left, right, layers=30):
    """--comparison arguments of two folders with tables and these rows."""
    for name, rows in (("a", left), ("b", right)):
        x, columns = kinds_of(layers, 1 if name == "a" else -1)
        write_comparison(tmp_path / name, x, x, **columns)
        npz.write_npz(tmp_path / name / profile_noise.ROWS_FILE, rows)
    names = [f"{name}={tmp_path / name}" for name in "ab"]
    return ["--comparison", *names, "--output_dir", str(tmp_path / "out")]


def test_corrected_correlations_are_written(tmp_path, capsys):
    arguments = write_pair(tmp_path, *draw_models(np.random.default_rng(0), 0.7))
    assert cross.main(arguments) == 0
    row = read_rows(tmp_path / "out" / "cross_model_correlations.csv")[0]
    assert row["shared_rows"] == "90"
    assert 0 < float(row["quadratic_corrected_r"]) < 1.2 and 0.25 < float(row["plain_signal_a"]) < 1
    printed = capsys.readouterr().out
    assert "without the noise" in printed and "no joint resampling" not in printed
    assert cross.main([*arguments, "--kind", "original"]) == 0
    assert "without the noise" not in capsys.readouterr().out


def rename_keys(rows):
    rows["key"] = np.char.add(rows["key"], "x")


def keep_two_neutral(rows):
    kept = np.flatnonzero((rows["category"] != "neutral") | (np.arange(90) % 30 < 2))
    for name in rows:
        rows[name] = rows[name][kept]


def shift_units(rows):
    rows["unit"] = (rows["unit"] + (rows["category"] == "neutral")) % 30


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (rename_keys, "a and b have no rows in common"),
        (keep_two_neutral, "a and b have 2 neutral rows in common, 8 are needed"),
        (shift_units, "a and b join the rows that they have in common into other units"),
    ],
)
def test_rows_that_cannot_be_drawn_jointly_are_a_note(tmp_path, capsys, change, why):
    left, right = draw_models(np.random.default_rng(0), 0.7)
    change(right)
    assert cross.main(write_pair(tmp_path, left, right)) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"note: no joint resampling: {why}" in out
    row = read_rows(tmp_path / "out" / "cross_model_correlations.csv")[0]
    assert row["shared_rows"] == "0" and row["plain_corrected_r"] == row["plain_signal_a"] == ""


def test_a_missing_file_of_rows_is_a_note(tmp_path, capsys):
    arguments = write_pair(tmp_path, *draw_models(np.random.default_rng(0), 0.7))
    (tmp_path / "b" / profile_noise.ROWS_FILE).unlink()
    assert cross.main(arguments) == 0
    assert "no joint resampling: profile_rows.npz is missing for b" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("base_sinkfree", np.zeros((90, 29), "f4"), "base_sinkfree is float32 [90, 29]"),
        ("unit", np.zeros(90), "unit is float64 [90]; expected int [90]"),
        ("category", np.zeros(90), "category is float64 [90]; expected str [90]"),
        ("category", np.zeros((), "U1"), "category is <U1 []"),
        ("key", np.full(90, "k"), "two rows have the same category and key"),
        ("instruct_normalised", np.full((90, 30), np.inf, "f4"), "has infinite values"),
    ],
)
def test_damaged_rows_are_refused_in_one_line(tmp_path, capsys, name, value, what):
    left, right = draw_models(np.random.default_rng(0), 0.7)
    assert cross.main(write_pair(tmp_path, left, right | {name: value})) == 2
    error = capsys.readouterr().err
    assert what in error and profile_noise.ROWS_FILE in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"no archive"])
def test_rows_that_are_no_archive_are_refused(tmp_path, capsys, content):
    arguments = write_pair(tmp_path, *draw_models(np.random.default_rng(0), 0.7))
    (tmp_path / "a" / profile_noise.ROWS_FILE).write_bytes(content)
    assert cross.main(arguments) == 2
    error = capsys.readouterr().err
    assert profile_noise.ROWS_FILE in error and "damaged" in error and error.count("\n") == 1
