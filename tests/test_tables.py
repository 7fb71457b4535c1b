"""Printed tables: 80 columns wide, no digit cut, and the same in a Markdown or LaTeX file."""

import json
import re

import numpy as np
import pytest
from rich.cells import cell_len

import analyze_results
import compare_base_instruct
import cross_model_correlation
import output_manager
import prompts
import run_pipeline
from prompts import load_prompts
from rolecircuits.drawing import table_files, tables
from rolecircuits.edits import answers, results
from rolecircuits.edits.effects import INFERRED, METRICS
from rolecircuits.inputs.errors import UserError
from rolecircuits.stats.profile_tests import Nulls
from rolecircuits.stats.run_pairs import main_numbers
from synthetic import make_run, save_run

LONG = "some-organisation-with-a-long-name/Some-Model-Family-8B-Instruct-v0.3-of-2026"


@pytest.fixture(scope="module")
def crossed():
    return load_prompts("crossed", 12)[0]


@pytest.fixture(scope="module")
def folders(crossed, tmp_path_factory):
    """Run folders shaped as the demo's, of models with long names: base, instruct."""
    root = tmp_path_factory.mktemp("long")
    runs = [
        make_run(12, 2, effect, model_id=LONG + form, prompt_format=form, prompts=crossed)
        for effect, form in ((0.1, "raw"), (0.3, "chat"))
    ]
    return [save_run(run, root, f"latest_{i}") for i, run in enumerate(runs)]


def check_lines(printed, least=3):
    """Every line of what was printed, checked; returns it in one line."""
    lines = printed.splitlines()
    assert len(lines) > least
    for line in lines:
        assert cell_len(line) <= 80, line
    assert "…" not in printed
    return " ".join(printed.split())


def effect_rows():
    """Rows of effects.csv with the widest numbers that there are."""
    place = {"role": "candidate", "category": "all", "n": 144, "pool": 32}
    parts = dict(
        zip(
            (*INFERRED, "_q", "_rank"),
            (-0.000123, -0.000456, 0.0000789, 1.2e-5, 0.2, 3.1e-5, 30),
            strict=True,
        )
    )
    numbers = {metric + part: value for metric in METRICS for part, value in parts.items()}
    return [{"intervention": f"ah_{i}_3-5-7-8_half_out"} | place | numbers for i in range(2)]


def correlation_rows():
    row = {"model_a": LONG, "model_b": LONG.upper(), "index": "rsi_diff", "n_points": 30}
    for trend in tables.TREND_NAMES:
        for name in ("r", "p", "shift_p", "corrected_r", "signal_a", "signal_b"):
            row[f"{trend}_{name}"] = -0.123
    row |= dict.fromkeys(Nulls._fields, -0.123)
    return [row | {"shared_rows": 144}]


def test_every_table_fits_80_columns(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    runs = [output_manager.load_run(folder) for folder in folders]
    analyze_results.analyze(runs[0], tmp_path / "a", 3)
    said = check_lines(re.sub(r".*written to.*\n.*\n.*", "", capsys.readouterr().out))
    assert "> 0: the first-named category is the more focused" in said
    assert re.search(r"[+-]\d\.\d\d \[[+-]\d\.\d\d, [+-]\d\.\d\d\]", said)  # g with its interval
    summary = compare_base_instruct.compare(*runs, tmp_path / "c", ["self_referent-neutral"])
    compare_base_instruct.print_summary(summary)
    said = check_lines(capsys.readouterr().out)
    assert "95 %: layers whose interval excludes 0, uncorrected" in said
    named = [f"{name}={tmp_path / 'c'}" for name in (LONG, LONG.upper())]
    out = ["--output_dir", str(tmp_path / "x")]
    assert cross_model_correlation.main(["--comparison", *named, *out]) == 0
    check_lines(re.sub("note: .*(\n  .*)*\n|written to .*", "", capsys.readouterr().out))
    tables.print_profile_correlations(correlation_rows(), "normalised")
    assert "r (p)" in check_lines(capsys.readouterr().out)
    for flags in ([], ["--prompts", "crossed"], ["--audit", str(folders[0])]):
        assert prompts.main(flags) == 0
        check_lines(re.sub("no --model_id.*", "", capsys.readouterr().out))
    results.print_effects(effect_rows(), [], [])
    said = check_lines(capsys.readouterr().out)
    assert said.count("-0.00012 [-0.00046, +7.9e-05]") == 6 and "controls q" in said
    sweep = {f"{name}_by_prompt": np.full((30, 9, 4), 12.3456) for name in ("kl", "top1_change")}
    sweep |= {name: np.full((30, 9), -0.12345) for name in ("rfc_change", "rsi_change")}
    results.print_strongest(sweep)
    check_lines(capsys.readouterr().out)


def test_main_numbers_stand_beside_null_and_count(folders, capsys):
    runs = dict(zip(("base", "instruct"), map(output_manager.load_run, folders), strict=True))
    entry = {"mean_ci_low": -0.0312, "mean_ci_high": 0.0271, "layers_q_below_alpha": 13}
    kinds = dict.fromkeys(tables.KIND_NAMES, dict.fromkeys(("rfc", "rsi"), entry))
    layers = [{"kind": "raw", "index": "rfc", "q": q} for q in (0.01, 0.2)]
    found = {"comparison": {"differences": kinds}, "base": {"layers": layers}}
    rows = main_numbers(runs, found)
    numbers = dict.fromkeys(("original", "my_own_set_of_prompts"), rows)
    tables.print_main_numbers("demo", numbers, {"base": "raw", "instruct": "chat"})
    said = check_lines(capsys.readouterr().out)
    assert tables.FOCUSED in said and "length null" in said
    raw = next(row for row in rows if (row["index"], row["kind"]) == ("rfc", "raw"))
    assert raw["base"][2] == 1 and raw["instruct"][2] is None
    value, null = raw["base"][:2]
    assert f"RFC raw original {value:+.3f} {null:+.3f} 1 {raw['instruct'][0]:+.3f}" in said
    change = raw["instruct"][0] - value
    assert f"RFC raw original {change:+.3f} [-0.031, +0.027] +0.000 13" in said
    order = re.findall("(?:RFC|RSI) (normalised|sink-free|raw)", said)
    assert order == ["normalised", "sink-free", "raw"] * 4


def test_numbers_are_never_cut(capsys):
    wide = "+1234.5678 [-1234.5678, +1234.5678]"
    tables.print_table(["model", *[tables.right("x")] * 3], [[LONG, wide, wide, wide]])
    printed = capsys.readouterr().out
    assert printed.count(wide) == 3 and "…" not in printed
    shared = tables.right("n")  # a column may be used again: its cells are not
    for number in (11, 22):
        tables.print_table([shared], [[number]])
    assert "11" not in capsys.readouterr().out.split("\n\n")[-1]


HOSTILE = "a|b & 5 % $x$ #1 my_name {c} ~d ^e \\f <g> *h* `i` [j](k) \x1b[31m -- \u00e9"


def test_markdown_escapes():
    table = table_files.PrintedTable(["a|b"], [True], [[HOSTILE]], "t_1", "n|n")
    text = table_files.markdown_table(table)
    assert text.splitlines()[:4] == ["**t\\_1**", "", "| a\\|b |", "| ---: |"]
    row = text.splitlines()[4]
    assert re.sub(r"\\.", "", row).count("|") == 2 and "\x1b" not in text
    assert row == (
        r"| a\|b \& 5 % \$x\$ \#1 my\_name {c} \~d ^e \\f \<g\> \*h\* \`i\` [j\](k) "
        "\\\\x1b[31m -- \u00e9 |"
    )
    assert text.endswith("\n\nn\\|n\n")


def test_latex_escapes():
    table = table_files.PrintedTable(
        ["m", "n"], [False, True], [[HOSTILE, "[1]"]], "t_1", "a_b\nc%d"
    )
    text = table_files.latex_table(table)
    assert r"\caption{t\_1}" in text and r"\begin{tabular}{lr}" in text
    assert r"a\_b\par" in text and r"c\%d\par" in text
    row = next(line for line in text.splitlines() if line.endswith(r"[1] \\"))
    assert row == (
        r"a\textbar{}b \& 5 \% \$x\$ \#1 my\_name \{c\} \textasciitilde{}d \textasciicircum{}e "
        r"\textbackslash{}f \textless{}g\textgreater{} *h* `i` [j](k) \textbackslash{}x1b[31m -{}- "
        "\u00e9 & [1] \\\\"
    )
    bare = re.sub(r"\\[&%$#_{}\\]|\\[a-z]+(\{[a-z ]*\})?", "", row)  # what is no command
    assert not set(bare) & set("%$#_^~\\|<>")
    assert (
        table_files.latex_table(table_files.PrintedTable(["[a]"], [False], [["*"]], "", "")).count(
            "{}"
        )
        == 2
    )  # \\ of the row above would take [a] or * as its own


def test_a_script_writes_its_tables(tmp_path, capsys):
    path = tmp_path / "new" / "t.md"
    assert prompts.main(["--prompts_per_category", "2", "--table", "md", str(path)]) == 0
    printed = capsys.readouterr().out
    assert f"2 tables written to {path}" in printed
    text = path.read_text()
    assert "| self\\_referent | 2 |" in text and "length null" in text and "**pairs**" in text
    assert [p.name for p in path.parent.iterdir()] == ["t.md"]
    latex = ["--prompts", "crossed", "--table", "latex", str(tmp_path / "t.tex")]
    assert prompts.main(latex) == 0
    text = (tmp_path / "t.tex").read_text()
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["rst", "t.rst"], "--table rst: must be md or latex"),
        (["md", "."], "is a folder"),
        (["md", "file/t.md"], "is a file, not a folder"),
    ],
)
def test_a_table_file_that_cannot_be_is_refused_first(flags, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=re.escape(said)):
        table_files.check_table(*flags)
    assert prompts.main(["--table", *flags]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_every_script_that_prints_tables_takes_the_flag():
    for script in (analyze_results, compare_base_instruct, cross_model_correlation, prompts):
        assert hasattr(script.run, "__wrapped__")
    args = run_pipeline.parse_args(["--family", "demo", "--table", "md", "t.md"])
    assert args.table == ["md", "t.md"] and hasattr(run_pipeline.run, "__wrapped__")


def test_examples_mark_what_differs(capsys):
    def changes(before, after):
        return answers.mark_change({"baseline": before, "edited": after})

    assert changes("I am a cat", "I am the cat") == ["I am [[a]] cat", "I am [[the]] cat"]
    assert changes("yes", "yes it is") == ["yes", "yes [[it is]]"]
    assert changes("", "no") == ["(nothing)", "[[no]]"]
    words = " ".join(f"w{i}" for i in range(100))
    before, after = changes(words, words.replace("w50", "other"))
    assert before.startswith("... w40") and "w49 [[w50]] w51" in before and before.endswith(" ...")
    assert "w49 [[other]] w51" in after
    row = {"id": "x", "category": "neutral", "prompt": "Why\nso?", "text": "yes \x1b[31m"}
    measures = dict.fromkeys(answers.MEASURES, 0)
    changed = {"intervention": "sh_1_1_zero_out", "category": "neutral", "prompt": "Why\nso?"}
    changed |= {"changed": True, "baseline": "a b", "edited": "a c"}
    found = {"baseline": [row | {"measures": measures}], "interventions": {"sh_1_1_zero_out": []}}
    found |= {"summary": {"baseline": {"neutral": {"n": 1} | measures}}, "changes": [changed]}
    answers.print_answers(found)
    said = check_lines(capsys.readouterr().out)
    assert "neutral: Why so? unedited a [[b]] edited a [[c]] edited by sh_1_1_zero_out" in said
    answers.print_answers(json.loads(json.dumps(found | {"changes": [], "interventions": {}})))
    assert "\\x1b" in check_lines(capsys.readouterr().out)


def test_the_title_of_an_interaction_says_what_its_sign_means(tmp_path, capsys):
    run = make_run(2, 2, prompts=load_prompts("deixis", 12)[0], prompt_format="chat")
    path = save_run(run, tmp_path)
    command = ["--input_dir", str(path), "--output_dir", str(tmp_path / "tables")]
    assert analyze_results.main(command) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "first-named category" not in printed  # the first side is a sum of two
    said = "about_model: interaction of person and turn, layer by layer; > 0: you_user + "
    assert f"{said}i_assistant more focused than i_user + you_assistant layer" in printed


def test_heads_of_a_contrast_with_a_long_name_fit(folders, tmp_path, capsys):
    command = ["--input_dir", str(folders[1]), "--output_dir", str(tmp_path)]
    assert analyze_results.main([*command, "--contrast", "third_person-self_referent"]) == 0
    check_lines(capsys.readouterr().out)
