"""The ten figures, the three of the comparison and the three of a tuning study against stored ones:
every number, every text, and the picture.

    python -m pytest tests/test_golden.py --mpl-generate-path=tests/golden      stores new ones;
    look at them, then commit

Runs are synthetic (tests/synthetic.py): no model, always the same numbers. Numbers are compared as
they are in the CSV files, texts exactly, numbers to RELATIVE of their size, because builds of numpy
add up in another order: without AVX2 no bit of any number changed, with OpenBLAS's kernels for
another processor (Nehalem) one bound of an interval by 3e-9, 9e-7 of its size. Pictures are
compared without their texts by the root mean square of the differences of their pixels (0 to 255):
0 where matplotlib is the pinned one, at most 1.9 with another font or hinting, 3.6 and more for the
mistakes in MISTAKES.
"""

import csv
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.text import Text

from rolecircuits.drawing import pair_figures, run_figures, style, tuning_figures
from rolecircuits.drawing.study import study_run
from rolecircuits.inputs.prompt_sets import built_in_prompts, cut_prompts
from rolecircuits.runs.files import write_csv
from rolecircuits.stats import signal_table, tuning_tests
from rolecircuits.stats.contrasts import available_contrasts
from rolecircuits.stats.pair_tables import summarise_comparison
from rolecircuits.stats.run_pairs import (
    estimate_contrasts,
    estimate_original,
    estimate_pair,
    match_runs,
)
from synthetic import make_run
from tuning_synthetic import PRIMARY, make_study

GOLDEN = Path(__file__).parent / "golden"
RELATIVE, ABSOLUTE = 1e-6, 1e-7
TOLERANCE = 2.0
DPI = 40
PICTURE = {
    "baseline_dir": "golden",
    "style": style.LOOK,
    "tolerance": TOLERANCE,
    "savefig_kwargs": {"dpi": DPI},
}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def studies():
    """{whether the prompts are crossed, so that they have slots: Study}"""
    size = {"n_layers": 4, "n_heads": 3, "effect": 0.4}
    prompts = cut_prompts(built_in_prompts("crossed"), 12)
    runs = {False: make_run(**size), True: make_run(**size, prompts=prompts)}
    return {crossed: study_run(run, n_resamples=400) for crossed, run in runs.items()}


@pytest.fixture(scope="module")
def pair():
    """{what draw_pair is given: (estimates, summary)} of a comparison of two synthetic runs."""
    base = make_run(n_layers=4, n_heads=3, effect=0.1, seed=1, model_id="base")
    instruct = make_run(
        n_layers=4, n_heads=3, effect=0.9, seed=2, model_id="instruct", prompt_format="chat"
    )
    runs, notes = match_runs(
        replace(base, path=Path("base")), replace(instruct, path=Path("instruct"))
    )
    estimates, reasons = estimate_pair(runs)
    original = estimate_original(runs)
    reasons = [text for text in reasons.values() if text]
    summary = summarise_comparison(runs, estimates, original, notes, reasons)
    contrasts = estimate_contrasts(runs, available_contrasts(base.category))
    of_name = dict.fromkeys(pair_figures.FIGURES, estimates) | {pair_figures.CONTRASTS: contrasts}
    return {name: (numbers, summary) for name, numbers in of_name.items()}


def draw_tuning(name):
    """(Figure, rows of its CSV) of one of TUNING, of a study of 4 runs an arm."""
    points = make_study(seeds=4, doses=(10, 50, 100), n_layers=6)
    study = tuning_tests.gather_runs(vars(points))
    signals = signal_table.signal_table(study, PRIMARY, n_permutations=19)
    if name == "tuning_main":
        return tuning_figures.draw_main(points, PRIMARY, signals, "tiny")
    if name == "tuning_signals":
        return tuning_figures.draw_signals(points, signals, "tiny")
    return tuning_figures.draw_profiles(points, tuning_figures.PROFILES, "tiny")


def draw(name, studies, pair):
    """(Figure, rows of its CSV) of one of the sixteen."""
    if name in TUNING:
        return draw_tuning(name)
    if name in run_figures.FIGURES:
        return run_figures.draw_figure(name, studies[name == run_figures.SLOT_FIGURE])
    return pair_figures.draw_pair(name, *pair[name])


TUNING = ("tuning_main", "tuning_signals", "tuning_profiles")
NAMES = [*run_figures.FIGURES, *pair_figures.FIGURES, pair_figures.CONTRASTS, *TUNING]


def hide_texts(figure):
    """The figure without its texts, whose rendering depends on the FreeType at hand; `test_texts`
    compares them as texts."""
    for axes in figure.findobj(Axes):
        axes.tick_params(labelleft=False, labelright=False, labelbottom=False, labeltop=False)
    for text in figure.findobj(Text):
        text.set_visible(False)
    return figure


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.mpl_image_compare(**PICTURE)
def test_picture(name, studies, pair):
    return hide_texts(draw(name, studies, pair)[0])


def list_texts(figure):
    """Every text of a figure that has words, sorted; wrapped lines are joined, because wrapping
    depends on fonts."""
    found = (" ".join(text.get_text().split()) for text in figure.findobj(Text))
    return sorted(text for text in found if re.search(r"[^\W\d]{2}", text))


@pytest.mark.parametrize("name", NAMES)
def test_texts(name, studies, pair, request):
    found, stored = list_texts(draw(name, studies, pair)[0]), GOLDEN / f"{name}.txt"
    if folder := request.config.getoption("--mpl-generate-path"):
        (Path(folder) / stored.name).write_text("\n".join(found) + "\n", encoding="utf-8")
        pytest.skip("stored")
    assert found == stored.read_text(encoding="utf-8").splitlines()


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def same(found, stored):
    """True for equal texts, and for numbers that differ by no more than rounding."""
    try:
        a, b = float(found), float(stored)
    except ValueError:
        return found == stored
    return math.isclose(a, b, rel_tol=RELATIVE, abs_tol=ABSOLUTE)


@pytest.mark.parametrize("name", NAMES)
def test_numbers(name, studies, pair, tmp_path, request):
    write_csv(tmp_path / "found.csv", draw(name, studies, pair)[1])
    stored = GOLDEN / f"{name}.csv"
    if folder := request.config.getoption("--mpl-generate-path"):
        shutil.copy(tmp_path / "found.csv", Path(folder) / stored.name)
        pytest.skip("stored")
    found, expected = read(tmp_path / "found.csv"), read(stored)
    assert found[0] == expected[0] and len(found) == len(expected) > 1
    for line, (row, golden) in enumerate(zip(found, expected, strict=True), start=1):
        wrong = [(c, a, b) for c, a, b in zip(found[0], row, golden, strict=True) if not same(a, b)]
        assert not wrong, f"{stored.name}, line {line}: {wrong[0]}"


def shift_colour_centre(figure):
    for axes in figure.axes[:2]:
        low, high = axes.collections[0].get_clim()
        axes.collections[0].set_clim(low, high + 0.4 * (high - low))


def turn_the_sign(figure):
    for axes in figure.axes[:2]:
        shown = axes.collections[0]
        shown.set_array(-shown.get_array())


def swap_panels(figure):
    left, right = (axes.get_position() for axes in figure.axes[:2])
    figure.axes[0].set_position(right)
    figure.axes[1].set_position(left)


def swap_colours(figure):
    lines = figure.axes[0].lines[:2]
    colours = [line.get_color() for line in lines]
    for line, colour in zip(lines, colours[::-1], strict=True):
        line.set_color(colour)


def lose_the_null(figure):
    for axes in figure.axes:
        for line in axes.lines:
            line.set_visible(line.get_linestyle() != "--")


def turn_the_sign_of_r(figure):
    shown = figure.axes[1].images[0]
    shown.set_array(-shown.get_array())


MISTAKES = {
    "colour centre": ("visualization_2_heatmaps", shift_colour_centre),
    "sign of heatmaps": ("visualization_2_heatmaps", turn_the_sign),
    "panels of heatmaps": ("visualization_2_heatmaps", swap_panels),
    "panels of lines": ("visualization_9_role_focus_separation", swap_panels),
    "panels of the comparison": ("rfc_rsi_comparison", swap_panels),
    "colours of lines": ("visualization_1_layer_attention_lines", swap_colours),
    "length null": ("visualization_7_cross_token_control", lose_the_null),
    "panels of slots": ("visualization_10_slot_attention", swap_panels),
    "colours of slots": ("visualization_10_slot_attention", shift_colour_centre),
    "panels of a study": ("tuning_main", swap_panels),
    "sign of r between runs": ("tuning_profiles", turn_the_sign_of_r),
    "panels of contrasts": ("contrasts_comparison", swap_panels),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_tolerance_sees(mistake, studies, pair, tmp_path):
    name, spoil = MISTAKES[mistake]
    figure = draw(name, studies, pair)[0]
    spoil(figure)
    hide_texts(figure).savefig(tmp_path / "wrong.png", dpi=DPI)
    stored, wrong = (
        image.imread(p)[..., :3] * 255
        for p in (GOLDEN / f"test_picture_{name}.png", tmp_path / "wrong.png")
    )
    rms = np.sqrt(((stored - wrong) ** 2).mean())
    assert rms > 1.5 * TOLERANCE, f"{mistake}: {rms:.2f}"
