"""docs/COLUMNS.md is the dictionary of every CSV: each column that is written is in it, and nothing
else is."""

import csv
import json
import re

import pytest

import activation_analysis
import analyze_results
import compare_base_instruct
import cross_model_correlation
import experiment
import interventions
import language_study
import probe_transfer
import visualize_results
from conftest import PROJECT
from output_manager import load_run
from rolecircuits.drawing import tuning_figures
from rolecircuits.inputs.prompt_sets import built_in_prompts, cut_prompts
from rolecircuits.runs import tuning_results
from rolecircuits.stats import head_changes
from synthetic import make_run, save_run
from tiny_models import save_tiny
from tuning_synthetic import make_study, save_study

PLACEHOLDERS = {
    "contrast": r"(self_neutral|self_confounder|confounder_third|\w+-\w+)",
    "index": "(rfc|rsi)",
    "kind": "(normalised|sinkfree|raw)",
    "side": "(base|instruct|diff)",
    "run": "(base|instruct)",
    "category": "(self_referent|confounder|neutral|third_person)",
    "metric": "(kl|top1_change|surprisal_change|rfc_change|rsi_change)",
    "trend": "(plain|linear|quadratic)",
    "arm": "(role|facts|shuffled)",
    "arms": "(role_facts|role_shuffled|facts_shuffled)",
    "set": "(original|crossed)",
    "which": "(self|difference)",
    "part": "(system_text|user_text|sink)",
}
PAIR = [f"{name}_{side}" for name in ("model", "format", "run") for side in ("base", "instruct")]


def read_dictionary():
    """({file: [column as documented]}, the columns of every row)."""
    found, common, names = {}, [], []
    for line in (PROJECT / "docs/COLUMNS.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            names = re.findall(r"`([\w*]+\.csv)`", line)
            common_part = line == "## In every row"
            for name in names:
                found[name] = []
        elif line.startswith("# "):
            names, common_part = [], False
        elif line.startswith("| `"):
            columns = re.findall(r"`([^`]+)`", line.split("|")[1])
            if common_part:
                common += columns
            for name in names:
                found[name] += columns
    return found, common


def pattern_of(column):
    """The columns that a documented one stands for, as a regular expression."""
    parts = re.split(r"\{(\w+)\}", column)
    return "".join(PLACEHOLDERS[p] if i % 2 else re.escape(p) for i, p in enumerate(parts))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """{file: set of its columns over every place where the scripts write it}."""
    root = tmp_path_factory.mktemp("columns")
    crossed = cut_prompts(built_in_prompts("crossed"), 24)
    for name, prompts in (("crossed", crossed), ("original", None)):
        runs = []
        for seed, side in enumerate(("base", "instruct")):
            made = make_run(3, 4, seed=seed, model_id=f"me/{side}", prompts=prompts)
            runs.append(load_run(save_run(made, root / name / side)))
            analyze_results.analyze(runs[-1], root / name / side / "analysis", 2)
        place = root / name / "base" / "analysis"
        analyze_results.compare_heads(*head_changes.match_pair(*runs), place, 2)
        visualize_results.visualize(runs[0], root / name / "figures")
        asked = ["confounder-third_person"]
        compare_base_instruct.compare(*runs, root / name / "compared", asked)
    comparisons = [f"{name}={root / name / 'compared'}" for name in ("crossed", "original")]
    arguments = ["--comparison", *comparisons, "--output_dir", str(root / "profiles")]
    assert cross_model_correlation.main(arguments) == 0
    runs = {}
    for seed, source in enumerate(("crossed:en", "crossed:de", "crossed:es", "crossed:it")):
        few = cut_prompts(built_in_prompts(source), 10)
        made = make_run(3, 2, seed=seed, prompts=few)
        runs[source] = load_run(save_run(made, root / "languages" / str(seed)))
    language_study.compare_languages(runs, root / "languages", 42, {})
    model = ["--model_id", save_tiny("llama", root / "model"), "--output_dir", str(root / "runs")]
    heads = [{"type": "head", "layer": 1, "head": h, "method": "zero_out"} for h in (0, 1)]
    plan = root / "plan.json"
    plan.write_text(json.dumps({"schema_version": 1, "interventions": heads}))
    few = [*model, "--config_file", str(plan), "--prompts_per_category", "2"]
    assert interventions.main(few) == 0
    assert interventions.main([*model, "--sweep", "heads", "--prompts_per_category", "2"]) == 0
    assert experiment.main([*few, "--max_tokens", "3", "--monitor"]) == 0
    edits = ["--output_type", "intervention", "--output_dir", str(root / "drawn")]
    newest = str(root / "runs" / "latest_intervention")
    assert visualize_results.main([*edits, "--input_dir", newest]) == 0
    said = (("user", "Hm?"), ("assistant", "A."), ("user", "Why?"), ("assistant", "So."))
    talk = [{"role": role, "content": text} for role, text in said]
    texts = root / "texts.jsonl"
    texts.write_text(
        "".join(
            json.dumps({"id": f"{name}{i}", "category": name, "messages": talk}) + "\n"
            for name in ("self_referent", "confounder", "neutral")
            for i in range(2)
        )
    )
    assert activation_analysis.main([*model, "--documents", str(texts)]) == 0
    pair = ["--base_id", model[1], "--instruct_id", model[1], "--prompts_per_category", "6"]
    assert probe_transfer.main([*pair, "--output_dir", str(root / "probes")]) == 0
    study = save_study(make_study(seeds=2, doses=(10, 20), n_layers=4), root / "study")
    tuning_figures.draw_study(tuning_results.load_study(study), study / "figures")
    found = {}
    for path in root.rglob("*.csv"):
        if any(part.is_symlink() for part in path.parents):
            continue
        with open(path, encoding="utf-8", newline="") as file:
            header = next(csv.reader(file))
        assert len(header) == len(set(header)), path
        name = "edit_*.csv" if path.name.startswith("edit_") else path.name
        found.setdefault(name, set()).update(header)
    return found


def test_every_file_is_in_the_dictionary_and_nothing_else_is(written):
    documented, _ = read_dictionary()
    assert set(documented) == set(written)


def test_every_column_is_in_the_dictionary_and_nothing_else_is(written):
    documented, common = read_dictionary()
    for name, columns in written.items():
        patterns = [pattern_of(column) for column in documented[name]]
        allowed = patterns + [re.escape(column) for column in [*common, *PAIR]]
        for column in columns:
            assert any(re.fullmatch(p, column) for p in allowed), f"{name}: {column} is not there"
        for pattern in patterns:
            assert any(re.fullmatch(pattern, c) for c in columns), f"{name}: no column {pattern}"


def test_every_row_says_which_run_it_is_of(written):
    for name, columns in written.items():
        of_run = {"model", "set", "format", "run"} <= columns
        of_pair = {*PAIR, "set"} <= columns
        assert of_run or of_pair or name.startswith("cross_model"), name


def test_columns_have_one_scheme(written):
    """The words of earlier versions: one quantity, one name."""
    old = re.compile(r"(mean|.*_?ci_(low|high)|length_null|difference|value)")
    for name, columns in written.items():
        for column in columns - {"mean"} if name.startswith("cross_model") else columns:
            published = re.fullmatch(r"r(fc|si)_(diff_)?ci_(low|high)(_base|_instruct)?", column)
            assert published or not old.fullmatch(column), f"{name}: {column}"


def test_every_csv_of_the_report_is_in_the_dictionary():
    page = (
        (PROJECT / "docs/COLUMNS.md").read_text(encoding="utf-8").split("# CSVs that the report")[1]
    )
    named = set()
    for path in (PROJECT / "rolecircuits/report").rglob("*"):
        if path.suffix in (".py", ".js"):
            named |= set(re.findall(r'"(\w+\.csv)"', path.read_text(encoding="utf-8")))
    assert named - {"name.csv"} == set(re.findall(r"`(\w+\.csv)`", page)) - {"comparison"}
