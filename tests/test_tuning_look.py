"""What people look at of a tuning study: its figures, its printed tables and its part of the report
show the numbers of the study, whatever its size."""

import json
import re
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from rich.cells import cell_len

import report
from browser import open_page, settle, start_browser
from rolecircuits.drawing import (
    table_files,
    tuning_figures,
    tuning_lines,
    tuning_signals,
    tuning_tables,
)
from rolecircuits.drawing.colours import ARM_LOOKS
from rolecircuits.drawing.tuning_names import signal_name, split_verdict
from rolecircuits.report import tuning
from rolecircuits.report.section import Context, Folders
from rolecircuits.runs.tuning_results import load_study
from rolecircuits.stats.tuning_tests import gather_runs, values_at_matched_drift
from synthetic import make_run
from tuning_synthetic import ERASURE, PRIMARY, make_config, make_study, save_study

SIZES = {
    "usual": {"seeds": 4, "doses": (10, 50, 100), "n_layers": 6},
    "quick": {"seeds": 2, "doses": (10, 20), "n_layers": 3},
    "one run an arm": {"seeds": 1, "doses": (10,), "n_layers": 1},
    "two arms": {"arms": ("role", "shuffled"), "seeds": 4, "doses": (5, 9000), "n_layers": 80},
    "tiny changes": {"seeds": 2, "doses": (2, 4), "n_layers": 3, "size": 1e-3},
    "one arm": {"arms": ("role",), "seeds": 3, "n_layers": 4},
}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """{size: loaded Study}"""
    root = tmp_path_factory.mktemp("studies")
    return {
        name: load_study(save_study(make_study(**size), root / name.replace(" ", "_")))
        for name, size in SIZES.items()
    }


@pytest.fixture(scope="module")
def study(studies):
    return studies["usual"]


def matched_values(points, signal):
    """{arm: values at matched drift} of a signal."""
    runs = gather_runs(vars(points))
    values = values_at_matched_drift(runs)[0][:, runs.signal.index(signal)]
    return {arm: values[runs.arm == arm] for arm in points.arms}


def test_lines_by_dose_are_runs_and_their_means_from_step_0(study):
    points = study.checkpoints
    figure, rows = tuning_figures.draw_main(points, PRIMARY, study.signals, study.label)
    change = points.change(PRIMARY)
    for axes, values in zip(figure.axes, (points.compliance, points.drift, change), strict=False):
        thick = [line for line in axes.lines if line.get_linewidth() == 2.0]
        thin = [line for line in axes.lines if line.get_linewidth() == 0.8]
        assert len(thick) == 3 and len(thin) == 12
        for arm, line in zip(points.arms, thick, strict=True):
            assert line.get_color() == ARM_LOOKS[arm].colour
            assert line.get_xdata().tolist() == [0, 10, 50, 100]
            own = [values[points.rows_of(arm, seed)] for seed in range(4)]
            expected = [values[points.base], *np.mean(own, axis=0)]
            np.testing.assert_allclose(line.get_ydata(), expected)
    assert [row["checkpoint"] for row in rows] == points.names
    np.testing.assert_allclose([row["change"] for row in rows], change)


def test_points_at_matched_drift_are_those_that_are_tested(study):
    points = study.checkpoints
    axes = tuning_figures.draw_main(points, PRIMARY, study.signals, "")[0].axes[5]
    shown = [np.sort(dots.get_offsets()[:, 1]) for dots in axes.collections]
    expected = matched_values(points, PRIMARY)
    for arm, own in zip(points.arms, shown, strict=True):
        np.testing.assert_allclose(own, np.sort(expected[arm]))
    row = next(row for row in study.signals if row["signal"] == PRIMARY)
    texts = [text.get_text() for text in axes.texts]
    pairs = ("role_facts", "facts_shuffled", "role_shuffled")
    assert texts == [f"p = {row[f'{pair}_p']:.3f}" for pair in pairs]
    ends = [line.get_xdata().tolist() for line in axes.lines if line.get_linewidth() == 0.8]
    assert np.round(ends).tolist() == [[0, 1], [1, 2], [0, 2]]


def test_matched_checkpoints_are_at_one_drift_and_marked(study):
    points = study.checkpoints
    axes = tuning_figures.draw_main(points, PRIMARY, study.signals, "")[0].axes[3]
    edged = [
        d for d in axes.collections if d.get_linewidths()[0] > 0.5 and len(d.get_offsets()) > 1
    ]
    assert len(edged) == 3
    for dots in edged:
        np.testing.assert_allclose(dots.get_offsets()[:, 0], 0.25)


def test_distances_are_differences_in_units_of_the_spread_between_seeds(study):
    points = study.checkpoints
    rows = {r["signal"]: r for r in tuning_signals.signal_rows(points, study.signals)}
    for signal in (PRIMARY, "persona_direction"):
        own = matched_values(points, signal)
        noise = np.sqrt(np.mean([values.var(ddof=1) for values in own.values()]))
        distance = (own["role"].mean() - own["facts"].mean()) / noise
        np.testing.assert_allclose(rows[signal]["role_facts_distance"], distance)
    ordered = tuning_signals.sort_signals(list(rows.values()))
    assert ordered[0]["signal"] == PRIMARY and ordered[0]["primary"]
    least = []
    for row in ordered[1:]:
        pair = [row["role_facts_distance"], row["role_shuffled_distance"]]
        least.append(min(map(abs, pair)) if np.sign(pair[0]) == np.sign(pair[1]) else 0)
    assert least == sorted(least, reverse=True) and least[0] > 5


def test_signals_are_in_the_order_of_the_smaller_distance_on_one_side():
    def row(facts, shuffled, primary=False):
        return {"role_facts_distance": facts, "role_shuffled_distance": shuffled} | {
            "primary": primary
        }

    rows = [row(-9, 8), row(2, 1), row(0, 0, True), row(-3, -4), row(np.nan, 2)]
    ordered = tuning_signals.sort_signals(rows)
    assert ordered == [rows[2], rows[3], rows[4], rows[1], rows[0]]


def test_a_filled_point_is_one_that_the_exact_test_passes(study):
    figure, rows = tuning_figures.draw_signals(study.checkpoints, study.signals, "")
    axes, drawn = figure.axes[0], {}
    for dots in axes.collections:
        x, height = dots.get_offsets()[0]
        drawn[int(height), dots.get_edgecolors()[0].tobytes()] = x, dots.get_facecolors()[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    filled = 0
    for height, row in enumerate(rows):
        assert names[height] == signal_name(row["signal"])
        for other in ("facts", "shuffled"):
            colour = np.array(to_rgba(ARM_LOOKS[other].colour))
            x, face = drawn[height, colour.tobytes()]
            np.testing.assert_allclose(x, row[f"role_{other}_distance"])
            passed = row[f"role_{other}_p"] < 0.05
            np.testing.assert_allclose(face, colour if passed else np.ones(4))
            filled += passed
    assert 0 < filled < 2 * len(rows)
    verdicts = {text.get_text(): text.get_weight() for text in axes.texts}
    assert verdicts["specific"] == "bold" and verdicts["follows drift"] == "normal"


def test_the_matrix_is_the_correlation_of_changes_between_runs(study):
    points = study.checkpoints
    figure, rows = tuning_figures.draw_profiles(points, [PRIMARY], "")
    lines, matrix = figure.axes[:2]
    order = np.concatenate([points.rows_of(arm, matched=True) for arm in points.arms])
    change = points.profile_change(PRIMARY)
    expected = np.corrcoef(change[order])
    shown = matrix.images[0]
    np.testing.assert_allclose(shown.get_array(), expected, atol=1e-12)
    assert shown.get_clim() == (-1, 1) and shown.get_cmap().name == "RdBu_r"
    inside = expected[:4, :4][np.triu_indices(4, 1)].mean()
    assert inside > expected[:4, 4:].mean() + 0.3
    thick = [line.get_ydata() for line in lines.lines if line.get_linewidth() == 2.0]
    np.testing.assert_allclose(thick[1], change[order[4:8]].mean(axis=0))
    r = [row["estimate"] for row in rows if row["quantity"] == "correlation"]
    np.testing.assert_allclose(r, expected[np.triu_indices(12, 1)], atol=1e-12)


def shown_labels(axes):
    """The labels of the ticks that are inside the axes."""
    for axis, ends in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        for tick in axis.get_major_ticks():
            if min(ends) <= tick.get_loc() <= max(ends):
                yield tick.label1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.filterwarnings("error::RuntimeWarning", "error::UserWarning")
def test_texts_are_neither_clipped_nor_overlapping(studies, size, tmp_path):
    study = studies[size]
    points = study.checkpoints
    drawings = [tuning_figures.draw_main(points, PRIMARY, study.signals, study.label * 3)]
    drawings.append(tuning_figures.draw_signals(points, study.signals, study.label))
    drawings.append(tuning_figures.draw_profiles(points, tuning_figures.PROFILES, study.label))
    assert (drawings[1] is None) == (size in ("one run an arm", "one arm"))
    for figure, rows in filter(None, drawings):
        assert rows
        figure.canvas.draw()
        page, placed = figure.bbox, []
        texts = [text for axes in figure.axes for text in (axes.title, *axes.texts)]
        texts += [label for axes in figure.axes for label in (axes.xaxis.label, axes.yaxis.label)]
        texts += [axes.yaxis.get_offset_text() for axes in figure.axes]
        texts += [label for axes in figure.axes for label in shown_labels(axes)]
        for text in (*figure.texts, *texts):
            if not (text.get_text().strip() and text.get_visible()):
                continue
            box = text.get_window_extent()
            assert box.x0 >= page.x0 - 1 and box.x1 <= page.x1 + 1, text.get_text()
            assert box.y0 >= page.y0 - 1 and box.y1 <= page.y1 + 1, text.get_text()
            placed.append((text.get_text(), box.shrunk(0.98, 0.8)))
        for i, (one, box) in enumerate(placed):
            for other, second in placed[i + 1 :]:
                assert not box.overlaps(second), (one, other)


def test_every_figure_is_written_with_its_numbers(study, tmp_path):
    paths = tuning_figures.draw_study(study, tmp_path, "svg")
    names = ["tuning_main", "tuning_signals", "tuning_profiles"]
    assert [path.name for path in paths] == [f"{name}.svg" for name in names]
    for name in names:
        text = (tmp_path / "data" / f"{name}.csv").read_text()
        assert text.startswith("model,set,format,run,")
        assert f"\nsynthetic/tiny,original crossed deixis,chat,{study.path.name}," in (
            text.replace("\r", "")
        )


# tables


@pytest.mark.parametrize("size", SIZES)
def test_tables_fit_a_terminal(studies, size, capsys):
    tuning_tables.print_study(studies[size])
    lines = capsys.readouterr().out.splitlines()
    assert all(cell_len(line) <= 80 for line in lines)
    names = [line for line in lines if line.startswith(("RFC", "RSI", "deixis", "slot"))]
    assert len(names) >= 15  # one line a signal: none is folded


def test_tables_show_the_numbers_of_the_study(study):
    with table_files.recorded_tables() as tables:
        tuning_tables.print_study(study)
    arms, signals, profiles = tables
    points = study.checkpoints
    rows = points.rows_of("shuffled")
    rows = rows[points.dose[rows] == 100]
    line = next(row for row in arms.rows if row[:2] == ["shuffled", "dose 100"])
    assert line[2:4] == ["4", f"{points.compliance[rows].mean():.2f}"]
    change = f"{points.change(PRIMARY)[rows].mean():+.4f}"
    assert line[-2:] == [f"{points.drift[rows].mean():.3f}", change]
    assert arms.rows[0][:3] == ["step 0", "", "-"]
    assert signals.rows[0][0] == "RFC normalised crossed*"
    of = {row["signal"]: row for row in study.signals}
    assert signals.rows[0][3] == f"{of[PRIMARY]['p']:.3f}"
    by_name = {row[0]: row for row in signals.rows}
    assert of["sink_original"]["p"] < of["sink_original"]["p_max"] - 0.01
    assert by_name["sink original"][3] == f"{of['sink_original']['p_max']:.3f}"
    assert by_name["persona direction"][-1] == of["persona_direction"]["verdict"]
    assert len(signals.rows) + len(profiles.rows) == len(study.signals)


def test_why_nothing_can_be_decided_is_said_once(studies, capsys):
    tuning_tables.print_study(studies["quick"])
    out = capsys.readouterr().out
    assert out.count("2 against 2 runs") == 1 and "undecidable" in out
    said = "cannot be decided with 2 against 2 runs: smallest p 0.33"
    assert split_verdict(said) == ("undecidable", said)
    assert split_verdict("follows drift") == ("follows drift", "")


def test_what_the_runs_can_show_stands_above_the_tables_and_what_was_found_below(studies, capsys):
    tuning_tables.print_study(studies["usual"])
    out = " ".join(capsys.readouterr().out.split())
    places = [
        out.index(text)
        for text in (
            "runs: 4 role, 4 facts, 4 shuffled",
            "smallest p 0.0286",
            "matched drift 0.2500 nats",
            "means over runs;",
            "candidate signals,",
            "12.0 of 6 layers between two runs of one arm; 11.0 between",
            "names 0.81 of held-out prompts (chance 0.25), after LEACE 0.27: erased.",
            "of nothing 0.81 (not erased), of permuted labels 0.79 (not erased).",
            "Specific to the role, of 40 candidates: persona direction, profile of RFC",
        )
    ]
    assert places == sorted(places)


def test_where_no_candidate_is_specific_the_verdicts_are_counted(study):
    rows = [row | {"verdict": "follows drift"} for row in study.signals]
    rows[0]["verdict"] = "undecided"
    said = tuning_lines.describe_found(replace(study, signals=rows))
    assert said == (
        "No candidate is specific to the role. Verdicts on 40: follows drift 39, undecided 1."
    )


def test_layers_that_differ_are_not_said_without_those_of_one_arm(study, studies):
    two_arms = [row for row in study.layer_counts if row["same_arm"] is not True]
    one_arm = [row for row in study.layer_counts if row["same_arm"] is True]
    assert two_arms and not tuning_lines.describe_counts(replace(study, layer_counts=two_arms))
    assert not tuning_lines.describe_counts(replace(study, layer_counts=[]))
    said = tuning_lines.describe_counts(replace(study, layer_counts=one_arm))
    assert said.endswith("q < 0.05): 12.0 of 6 layers between two runs of one arm.")


def test_an_erasure_whose_known_nulls_are_not_caught_is_said_to_have_failed(study):
    def said(**changes):
        summary = study.summary | {"erasure": ERASURE | changes}
        return tuning_lines.describe_erasure(replace(study, summary=summary))

    assert "failed" not in said() and said().endswith("permuted labels 0.79 (not erased).")
    assert said(null_caught=False).endswith("The check failed: they are not told apart.")
    nothing = said(null_caught=None, verdict="nothing to erase")
    assert nothing.endswith("nothing to erase.")
    assert tuning_lines.describe_erasure(replace(study, summary={})) == ""


# the report


@pytest.fixture(scope="module")
def page(study, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    return report.write_report([make_run(n_layers=3)], {"tuning": study.path}, path)


def section_of(study):
    return tuning.tuning_section(Context({}, folders=Folders(tuning=study.path)))


def test_no_study_no_section(tmp_path):
    assert tuning.tuning_section(Context({})) is None
    path = report.write_report([make_run(n_layers=2)], {}, tmp_path / "r.html")
    assert 'id="tuning"' not in path.read_text(encoding="utf-8")


def test_the_page_holds_the_numbers_of_the_study(study):
    data, points = section_of(study).data, study.checkpoints
    np.testing.assert_allclose(data["changes"][PRIMARY], points.change(PRIMARY))
    projection = np.array(data["changes"][f"projection_{PRIMARY}"])
    assert projection[points.base] == 0
    last = points.rows_of("role")
    last = last[points.dose[last] == 100]
    change = points.profile_change(PRIMARY)[last]
    others = change[1:].mean(axis=0)
    np.testing.assert_allclose(projection[last[0]], np.corrcoef(change[0], others)[0, 1])
    found = data["matched"]
    for arm, own in matched_values(points, PRIMARY).items():
        shown = [x for a, x in zip(found["arm"], found["values"][PRIMARY], strict=True) if a == arm]
        np.testing.assert_allclose(shown, own)
    assert len(data["signals"]) == len(study.signals) == len(data["changes"])


def test_the_study_in_words(studies):
    said = section_of(studies["usual"]).static["said"]
    row = next(row for row in studies["usual"].signals if row["signal"] == PRIMARY)
    assert (
        f"drift explains R2 {row['r2_drift']:.2f}, compliance {row['r2_compliance']:.2f}" in said[2]
    )
    assert f"exact p {row['role_facts_p']:.3f}" in said[2] and "follows drift" in said[2]
    assert "persona direction" in said[3]
    assert "(RFC normalised, q < 0.05): 12.0 of 6 layers between two runs of one arm" in said[4]
    quick = " ".join(section_of(studies["quick"]).static["said"])
    assert "with these runs none of 40 can be decided" in quick and "smallest p 0.33" in quick


def test_power_is_said_where_the_study_states_it(tmp_path):
    summary = {"power": {"smallest_p": 0.0079365, "smallest_difference_sd": 2.31}}
    points = make_study(seeds=2, doses=(10,), n_layers=2)
    told = load_study(save_study(points, tmp_path / "s", summary=summary))
    said = section_of(told).static["said"][0]
    assert "no p can be below 0.0079" in said and "2.3 standard deviations" in said
    assert section_of(load_study(save_study(points, tmp_path / "t", summary={"power": "x"})))


@pytest.mark.parametrize("size", SIZES)
def test_a_study_of_any_size_has_its_section(studies, size):
    section = section_of(studies[size])
    assert len(section.static["charts"]) == 3 and section.tables["signals.csv"]
    doses = [text for _, text in section.static["charts"][0]["x"]]
    assert doses[0] == "0" and doses[-1] == str(studies[size].checkpoints.dose.max())


def test_without_scripts_the_study_can_be_read(page):
    text = re.sub(r"<script.*?</script>", "", page.read_text(encoding="utf-8"), flags=re.S)
    own = text[text.index('<section id="tuning"') :]
    assert own.count("<svg") == 3 and "<polyline" in own and "var(--arm-role)" in own
    assert "profile of RFC normalised, crossed" in own and "follows drift" in own


def test_names_of_users_are_text(tmp_path):
    hostile = "</script><img src=x onerror=alert(1)>"
    folder = save_study(make_study(seeds=2, doses=(10,), n_layers=2), tmp_path / "s")
    config = make_config() | {"model": {"id": hostile}}
    for name in ("signals.csv", "layer_counts.csv"):
        text = (folder / name).read_text().replace("synthetic/tiny", hostile)
        (folder / name).write_text(text)
    (folder / "study_config.json").write_text(json.dumps(config | {"status": "complete"}))
    path = tmp_path / "r.html"
    report.write_report([make_run(n_layers=2)], {"tuning": folder}, path, verify=False)
    text = re.sub(r"<script.*?</script>", "", path.read_text(encoding="utf-8"), flags=re.S)
    assert "<img" not in text and "&lt;img" in text


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: folder / "figures", "no such folder"),
        (lambda folder: (folder / "manifest.json").unlink() or folder, "not a complete run"),
        (lambda folder: (folder / "signals.csv").write_text("x") and folder, "signals.csv"),
    ],
)
def test_wrong_studies_are_one_line(spoil, said, tmp_path, capsys):
    from synthetic import save_run

    run = save_run(make_run(n_layers=2), tmp_path / "runs")
    folder = save_study(make_study(seeds=2, doses=(10,), n_layers=2), tmp_path / "study")
    assert report.main([str(run), "--tuning", str(spoil(folder))]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_run_is_no_study(tmp_path, capsys):
    from synthetic import save_run

    run = str(save_run(make_run(n_layers=2), tmp_path / "runs"))
    assert report.main([run, "--tuning", run]) == 2
    assert "is a run of activation_analysis.py, not a tuning study" in capsys.readouterr().err


@pytest.fixture(scope="module")
def browser(page, tmp_path_factory):
    browser = start_browser(tmp_path_factory.mktemp("profile"))
    open_page(browser, page)
    settle(browser)
    yield browser
    browser.quit()


CHART = "return document.querySelector('#tuning-charts svg').outerHTML"


def choose(browser, menu, value):
    browser.execute_script(
        "const menu = document.getElementById(arguments[0]); menu.value = arguments[1];"
        "menu.dispatchEvent(new Event('change'));",
        menu,
        value,
    )
    return wait_for_change(browser)


def wait_for_change(browser, seconds=20):
    """The chart once it has been drawn again."""
    from selenium.webdriver.support.wait import WebDriverWait

    before = getattr(wait_for_change, "last", None)
    WebDriverWait(browser, seconds).until(lambda b: b.execute_script(CHART) != before)
    wait_for_change.last = browser.execute_script(CHART)
    return wait_for_change.last


def test_a_menu_and_a_click_change_the_chart(browser, study):
    first = wait_for_change(browser)
    assert "against drift, R2" in first and "RFC normalised, crossed" in first
    second = choose(browser, "tuning-signal", "persona_direction")
    assert "persona direction" in second and "RFC normalised, crossed" not in second
    behaviour = choose(browser, "tuning-behaviour", "roleplay")
    assert "another persona kept" in behaviour
    name = "profile of RSI sink-free, crossed"
    browser.execute_script(
        "Array.from(document.querySelectorAll('#tuning-table td button'))"
        ".find((button) => button.textContent === arguments[0]).click()",
        name,
    )
    assert name in wait_for_change(browser)
    current = "return document.querySelector('#tuning-table [aria-current] td').textContent"
    assert browser.execute_script(current) == name
    assert not [e for e in browser.get_log("browser") if e["level"] == "SEVERE"]


def test_the_table_is_sorted_by_a_column(browser):
    read = (
        "return Array.from(document.querySelectorAll('#tuning-table tbody tr'), (row) =>"
        " row.children[7].textContent)"
    )
    browser.execute_script("document.querySelectorAll('#tuning-table th button')[7].click()")
    shown = [float(text) for text in browser.execute_script(read)]
    assert shown == sorted(shown) and shown[0] < shown[-1]
