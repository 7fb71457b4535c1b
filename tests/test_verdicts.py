"""What tests of layers are said to have found, what could not be tested, and the multiverse."""

import csv
import re

import numpy as np
import pytest
from scipy import stats

import analyze_results
from conftest import PROJECT
from prompts import load_prompts
from rolecircuits.drawing import run_figures
from rolecircuits.drawing.study import study_run
from rolecircuits.inputs.categories import Prompt
from rolecircuits.inputs.prompt_sets import built_in_prompts, cut_prompts
from rolecircuits.stats import (
    audit,
    contrasts,
    indices,
    multiverse,
    role_tests,
    run_pairs,
    verdicts,
)
from synthetic import make_run, save_run

SIGNED = ("normalised", "rfc")


@pytest.fixture(scope="module")
def crossed():
    """36 frames; layer 0 is planted, layer 1 and 2 have none or a tiny effect."""
    run = make_run(3, 6, effect=0.0, prompts=cut_prompts(built_in_prompts("crossed"), 36), seed=2)
    run.entropy[run.category == "self_referent", 0] *= 0.7
    return run


@pytest.fixture(scope="module")
def inferred(crossed):
    return role_tests.infer_kinds(crossed)


@pytest.fixture(scope="module")
def nobody():
    """A set about things, whose categories share no first word, with a planted difference.

    Every prompt is its own frame, so that nothing else forbids intervals and tests.
    """
    chosen, _ = load_prompts(str(PROJECT / "benchmarks" / "data" / "nobody_1.csv"))
    run = make_run(2, 2, effect=0.8, prompts=chosen)
    run.path = PROJECT / "nobody"
    return run


def rows_of(rows, kind, index):
    return [row for row in rows if (row["kind"], row["index"]) == (kind, index)]


def test_a_layer_differs_is_equivalent_or_undecided(crossed, inferred):
    wide, narrow = (role_tests.layer_metrics(crossed, inferred, margin) for margin in (0.1, 0.001))
    assert [row["verdict"] for row in rows_of(wide, *SIGNED)] == [
        *("differs", "equivalent", "equivalent")
    ]
    assert [row["verdict"] for row in rows_of(narrow, *SIGNED)] == [
        *("differs", "undecided", "undecided")
    ]
    huge = role_tests.layer_metrics(crossed, inferred, 1.0)
    assert rows_of(huge, *SIGNED)[0]["verdict"] == "differs, less than the margin"
    text = verdicts.describe_found(rows_of(wide, *SIGNED), 0.1)
    assert text.startswith(
        "BH and margin 0.1: 1 differ, 2 equivalent; 80 % power for a layer at 0.0"
    )


def test_equivalence_is_two_one_sided_tests_and_mde_is_blooms():
    """The 90 % interval of estimate - null inside the margin, in normal numbers."""
    error, z90, z95 = 0.02, stats.norm.ppf(0.95), stats.norm.ppf(0.975)
    estimate, null = np.array([0.214, 0.225, 0.175, 0.3]), np.full(4, 0.2)
    numbers = {"estimate": estimate, "null": null, "error": np.full(4, error)}
    numbers |= {"low": estimate - z95 * error, "high": estimate + z95 * error}
    p = 2 * stats.norm.sf(np.abs(estimate - null) / error)
    halves = {"outer": np.full(4, z95 * error), "inner": np.full(4, z90 * error)}
    numbers |= halves | {"p": p, "q": contrasts.q_values(p)}
    found = role_tests.judge_layers(numbers, 0.05)
    one_sided = [stats.norm.cdf((np.abs(e - 0.2) - 0.05) / error) < 0.05 for e in estimate]
    assert (found["verdict"] == "equivalent").tolist() == one_sided == [True, False, False, False]
    assert found["verdict"].tolist()[1:] == ["undecided", "undecided", "differs"]
    np.testing.assert_allclose(found["mde"], (z95 + stats.norm.ppf(0.8)) * error)
    at_mde = stats.norm(found["mde"][0] / error, 1)
    assert at_mde.sf(z95) + at_mde.cdf(-z95) == pytest.approx(0.8, abs=1e-4)
    numbers |= {name: np.full(4, np.nan) for name in (*halves, "low", "high", "p", "q")}
    found = role_tests.judge_layers(numbers, 0.05)
    assert np.isnan(found["mde"]).all() and set(found["verdict"]) == {""}


def test_what_a_raw_layer_could_show_is_that_of_its_test():
    """Raw indices are tested against uniform attention: both halves and the error are the test's,
    whose interval is narrower than that of the index where prompts differ in length."""
    run = make_run(2, 2, effect=0.0, seed=5)
    numbers = role_tests.infer_layers(run, "raw")["rfc"]
    test = numbers["family"]
    assert not np.allclose(test.high - test.low, numbers["high"] - numbers["low"], rtol=0.01)
    expected = (test.high - test.low) / 2 + stats.norm.ppf(0.8) * test.error
    np.testing.assert_allclose(role_tests.judge_layers(numbers, 0.05)["mde"], expected)


def test_signs_are_apart_only_where_both_estimates_are_defined():
    apart = role_tests.signs_apart(np.array([1.0, 1.0, 1.0]), np.array([-1.0, 2.0, np.nan]))
    assert apart.tolist() == [True, False, ""]


def test_a_primary_family_without_tests_says_why(crossed):
    few = make_run(2, 2, prompts=cut_prompts(built_in_prompts("crossed"), 7))
    rows = role_tests.layer_metrics(few, role_tests.infer_kinds(few))
    lines = verdicts.list_verdicts(rows, {}, role_tests.list_reasons(few, {}), 0.05)
    assert lines[0].endswith(
        "no interval and no test below 8 frames: neutral has 7; no interval "
        "and no test below 8 frames: confounder has 7"
    )
    lacking = few.take(np.flatnonzero(few.category != "neutral"))
    rows = role_tests.layer_metrics(lacking, role_tests.infer_kinds(lacking))
    lines = verdicts.list_verdicts(rows, {}, role_tests.list_reasons(lacking, {}), 0.05)
    assert lines[0] == "no primary family: RFC and RSI need categories that this set lacks"


def test_the_primary_family_is_both_indices_of_a_crossed_set(crossed, inferred):
    rows = role_tests.layer_metrics(crossed, inferred)
    primary = {(row["kind"], row["index"]) for row in rows if row["family"] == "primary"}
    assert primary == {("normalised", "rfc"), ("normalised", "rsi")}
    for row in rows:
        if row["family"] == "primary":
            assert row["p_primary"] >= row["p_max"]
        else:
            assert np.isnan(row["p_primary"])
        assert row["prompts"] == 2 * 36 == 2 * row["frames"]
        assert np.isnan(row["within_words"]) and row["sign_disagrees"] == ""
    assert any(row["p_primary"] > row["p_max"] for row in rows_of(rows, *SIGNED))
    chosen = contrasts.available_contrasts(crossed.category)
    reasons = role_tests.list_reasons(crossed, chosen)
    tests = role_tests.contrast_heads(crossed, chosen)
    lines = verdicts.list_verdicts(rows, tests, reasons, 0.05)
    assert lines[0] == "primary (RFC and RSI of 3 layers, normalised, max-T over both):"
    assert lines[1].startswith(
        "    RFC: 1 of 3 layers pass max-T at 0.05; BH and margin 0.05: 1 diff"
    )
    assert not any("normalised" in line for line in lines[1:])


def test_the_design_effect_is_the_square_of_the_errors(crossed):
    """Frames share a level: inside them the error is smaller than that of independent prompts."""
    run = make_run(2, 2, prompts=cut_prompts(built_in_prompts("crossed"), 36))
    level = {frame: 0.5 + 0.5 * i / 36 for i, frame in enumerate(dict.fromkeys(run.frame.tolist()))}
    run.entropy *= np.array([level[f] for f in run.frame.tolist()], np.float32)[:, None, None, None]
    values, found = indices.layer_values(run), role_tests.describe_sizes(run, "normalised")["rfc"]
    a, b = (values[run.category == name] for name in ("self_referent", "neutral"))
    ratio = a.mean(axis=0) / b.mean(axis=0)
    by_frame = (a - b * ratio).std(axis=0, ddof=1)
    alone = np.sqrt(a.var(axis=0, ddof=1) + ratio**2 * b.var(axis=0, ddof=1))
    np.testing.assert_allclose(found["design_effect"], (by_frame / alone) ** 2, rtol=1e-4)
    np.testing.assert_allclose(found["effective_n"], 72 / found["design_effect"])
    assert (found["design_effect"] < 0.5).all() and found["frames"] == 36
    matched = role_tests.describe_sizes(run, "position_matched")[
        "rsi"
    ]  # undefined for third_person
    assert (matched["design_effect"] < 0.5).all()


def test_the_sign_within_shared_words_is_said_where_it_is_the_other():
    """Self-referent prompts begin more often with the word of low entropy and are the less focused
    within each word: Simpson's paradox."""
    counts = {"self_referent": (20, 8), "neutral": (8, 20), "confounder": (14, 14)}
    chosen = [
        Prompt(f"{name}{word}{i}", name, -1, f"{word} is {name} number {i}")
        for name, n in counts.items()
        for word, k in zip(("How", "What"), n, strict=True)
        for i in range(k)
    ]
    run = make_run(2, 2, effect=0.0, prompts=chosen)
    how = np.array([p.text.startswith("How") for p in chosen])
    factor = np.where(how, 0.5, 1.0) * np.where(run.category == "self_referent", 1.1, 1.0)
    run.entropy *= factor.astype(np.float32)[:, None, None, None]
    rows = rows_of(role_tests.layer_metrics(run, role_tests.infer_kinds(run)), *SIGNED)
    for row in rows:
        assert row["estimate"] > 0.1 and row["within_words"] < -0.05
        assert row["sign_disagrees"] == 1 and row["verdict"] == "differs"
    said = verdicts.describe_found(rows, 0.05)
    assert said.endswith("; 2 layers have the other sign within shared first words")
    pair = {"self_neutral": ("self_referent", "neutral")}
    values = indices.layer_values(run)
    rows = role_tests.contrast_layers(run, pair)
    for row in rows[:2]:
        own = values[:, row["layer"]]
        means = [
            [own[(run.category == name) & (how == word)].mean() for name in pair["self_neutral"]]
            for word in (True, False)
        ]
        # the category that has fewer prompts of a word has 8 of 28, for either word
        expected = np.mean([second - first for first, second in means])
        assert row["within_words"] == pytest.approx(expected)
        assert row["within_words"] < 0 < row["estimate"] and row["sign_disagrees"] == 1


def blank(*columns):
    return all(np.isnan(np.asarray(column, dtype=float)).all() for column in columns)


def test_what_is_not_identified_has_no_interval_and_no_test_anywhere(nobody, tmp_path, capsys):
    for pair in contrasts.CONTRASTS.values():
        reason = audit.contrast_reason(nobody, pair)
        assert (
            reason
            == f"not identified: no first word begins prompts of {' and '.join(pair)}, so "
            + ("the design cannot tell who from how")
        )
    found = analyze_results.analyze(nobody, tmp_path / "out", 2)
    out = " ".join(capsys.readouterr().out.split())
    assert "secondary, self_neutral: not identified" in out
    assert "secondary, normalised RFC: not identified" in out
    assert re.search(r"self_neutral +[+-][\d.]+ [+-][\d.]+ @\d [+-][\d.]+ @\d - - - 2 ", out)
    for row in found["layers"]:
        assert blank(
            *(row[name] for name in ("low", "high", "p", "q", "p_max", "p_primary", "mde"))
        )
        assert (
            row["verdict"] == ""
            and (row["kind"] in role_tests.MATCHED) == blank(row["estimate"])
            or (row["kind"] == "position_matched")
        )
    for row in found["contrasts"]:
        assert blank(*(row[name] for name in ("low", "high", "p", "q", "p_max", "within_words")))
        assert np.isfinite([row["estimate"], row["g"]]).all()
    for row in found["heads"]:
        for name in contrasts.CONTRASTS:
            assert blank(
                *(row[f"{name}_{test}"] for test in ("g_low", "g_high", "p", "q", "p_max"))
            )
            assert np.isfinite(row[f"{name}_g"])
    by_unit = [row for row in found["multiverse"] if row["interval"] == multiverse.BY_UNIT]
    assert blank([[row[name] for name in ("p", "q", "p_max", "p_all")] for row in by_unit])
    assert {row["significance"] for row in by_unit} == {""}


def test_figures_and_comparisons_of_what_is_not_identified_say_so(nobody):
    study = study_run(nobody, n_resamples=50)
    for number in (2, 4, 5, 6, 8, 9):
        (name,) = (name for name in run_figures.FIGURES if f"_{number}_" in name)
        figure, rows = run_figures.draw_figure(name, study)
        for row in rows:
            ends = [row[end] for end in row if end.split("_")[-1] in ("low", "high", "p", "q")]
            assert blank(ends), name
        text = " ".join(item.get_text() for item in figure.texts).replace("\n", " ")
        assert "not identified: no first word begins" in text, name
    runs = {"base": nobody, "instruct": nobody.take(np.arange(120))}
    runs["instruct"].entropy = nobody.entropy[:, ::-1]
    estimates, reasons = run_pairs.estimate_pair(runs)
    assert all("not identified" in reason for reason in reasons.values())
    for of_kind in estimates.values():
        for sides in of_kind.values():
            assert sides["diff"]["mean_interval"] is None
            for one in sides.values():
                assert blank(*(one[name] for name in ("low", "high", "p", "q", "p_max")))
    compared = run_pairs.estimate_contrasts(runs, contrasts.CONTRASTS)
    for sides in compared.values():
        for one in sides.values():
            assert blank(*(one[name] for name in ("low", "high", "p", "q", "p_max")))


def test_the_multiverse_holds_every_choice(crossed, inferred):
    rows = multiverse.multiverse_rows(crossed, inferred)
    cells = {(row["kind"], row["matching"], row["interval"]) for row in rows}
    kinds, how = indices.KINDS, (multiverse.BY_UNIT, multiverse.AS_INDEPENDENT)
    matched = {("normalised", name, how[0]) for name in ("position", "first_word")}
    assert cells == {(kind, "none", one) for kind in kinds for one in how} | matched
    assert len(rows) == len(cells) * 2 * 3 and {row["set"] for row in rows} == {crossed.prompt_set}
    for row in rows:
        kind = row["kind"] if row["matching"] == "none" else f"{row['matching']}_matched"
        own = inferred[kind][row["index"]]
        distance = (own["estimate"] - own["null"])[row["layer"]]
        assert row["sign"] == np.sign(row["distance"])
        assert row["distance"] == pytest.approx(distance, abs=1e-9) and row["p_all"] >= row["p_max"]
        if row["interval"] == multiverse.BY_UNIT:
            assert row["p"] == own["p"][row["layer"]] and row["q"] == own["q"][row["layer"]]
        strength = "max-T" if row["p_all"] < 0.05 else "BH" if row["q"] < 0.05 else "none"
        assert row["significance"] == strength
    planted = [row for row in rows if (row["index"], row["layer"]) == ("rfc", 0)]
    planted = [row for row in planted if row["kind"] != "sinkfree"]  # where nothing is planted
    assert {(row["sign"], row["significance"]) for row in planted} == {(1.0, "max-T")}


def test_p_all_is_max_t_over_all_choices_at_once(crossed, inferred):
    """The highest rank of all kinds and both indices, draw by draw."""
    rows = multiverse.multiverse_rows(crossed, inferred)
    families = [inferred[kind][index]["family"] for kind in inferred for index in ("rfc", "rsi")]
    least = np.min([one.least for one in families], axis=0)
    k = next(k for k in range(1, len(least)) if (least <= k).mean() >= 0.05)
    tests = np.log(1 - (least <= k).mean()) / np.log(1 - k / len(least))
    assert len(inferred["sinkfree"]["rsi"]["p"]) < tests < sum(one.p.size for one in families)
    for row in rows_of(rows, "sinkfree", "rsi"):
        if row["interval"] == multiverse.BY_UNIT:
            assert row["p_all"] == pytest.approx(1 - (1 - row["p"]) ** tests, rel=1e-6)


def test_prompts_as_if_independent_are_too_sure_where_they_begin_alike():
    """First words of random level, which categories use unequally: by unit fewer layers pass."""
    prompts = load_prompts(str(PROJECT / "benchmarks" / "data" / "nobody_5.csv"))[0]
    run = make_run(40, 2, effect=0.0, prompts=prompts, first_words=True)
    words = {word: i for i, word in enumerate(dict.fromkeys(run.frame.tolist()))}
    level = np.exp(np.random.default_rng(1).normal(size=(len(words), 40)))
    run.entropy *= level[[words[f] for f in run.frame.tolist()]][:, :, None, None]
    rows = multiverse.multiverse_rows(run, role_tests.infer_kinds(run))
    plain = [row for row in rows if (row["kind"], row["matching"]) == ("normalised", "none")]
    passed = {
        how: np.mean([row["p"] < 0.05 for row in plain if row["interval"] == how])
        for how in (multiverse.BY_UNIT, multiverse.AS_INDEPENDENT)
    }
    assert passed[multiverse.BY_UNIT] < 0.06 < 0.12 < passed[multiverse.AS_INDEPENDENT]


def test_the_margin_and_the_multiverse_reach_the_files(tmp_path, crossed, capsys):
    path = save_run(crossed, tmp_path / "runs")
    argv = ["--input_dir", str(path), "--output_dir", str(tmp_path / "out"), "--margin", "0.1"]
    assert analyze_results.main(argv) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "BH and margin 0.1: 1 differ, 2 equivalent" in out
    for name, size in (("layer_metrics", 5 * 2 * 3), ("multiverse", 8 * 2 * 3)):
        with open(tmp_path / "out" / f"{name}.csv", newline="", encoding="utf-8") as file:
            assert len(list(csv.DictReader(file))) == size


@pytest.mark.parametrize("margin", ["0", "-0.1", "nan", "1e-3", "1.5", ""])
def test_bad_margins_are_refused_in_one_line(capsys, margin):
    with pytest.raises(SystemExit) as stopped:
        analyze_results.main(["--input_dir", "x", "--margin", margin])
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and "above 0 and at most 1" in err and err.count("\n") == 1
