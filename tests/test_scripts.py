"""The scripts as a user runs them: commands as subprocesses, exit codes, files, repetition."""

import csv
import gc
import hashlib
import json
import os
import subprocess
import sys
import weakref
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import activation_analysis
import output_manager
import report
import run_pipeline
from prompts import load_prompts
from rolecircuits.capture import instrument
from rolecircuits.edits import family_plan
from rolecircuits.inputs.categories import CATEGORIES
from rolecircuits.inputs.errors import UserError
from rolecircuits.models import families as families_module
from rolecircuits.models.families import SIDES
from rolecircuits.runs import npz
from rolecircuits.stats import entropy as entropies
from rolecircuits.stats import indices
from tiny_models import save_tiny

PROJECT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(p.name for p in PROJECT.glob("*.py") if "def parse_args(argv" in p.read_text())


def run_script(*command, cwd=None, **environment):
    env = os.environ | {"HF_HUB_OFFLINE": "1"} | environment
    return subprocess.run(
        [sys.executable, PROJECT / command[0], *map(str, command[1:])],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )


def run_tiny_family(folder, *flags):
    """run_pipeline.py on the pair `tiny` of families.json in `folder`."""
    family = ("--family", "tiny", "--families_file", "families.json")
    return run_script("run_pipeline.py", *family, *flags, cwd=folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny("llama", tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="module")
def family(tiny, tmp_path_factory):
    """A pipeline run of a tiny pair on both prompt sets, in its own folder: (folder, what it
    printed)."""
    folder = tmp_path_factory.mktemp("pipeline")
    families = {
        "tiny": {
            "base": {"model_id": tiny, "prompt_format": "raw"},
            "instruct": {"model_id": tiny, "prompt_format": "chat"},
        }
    }
    (folder / "families.json").write_text(json.dumps(families))
    done = run_tiny_family(folder, "--prompts_per_category", "6")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_answers_without_heavy_imports(script):
    code = (
        "import sys, runpy; sys.argv = [sys.argv[1], '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as e: assert not e.code\n"
        "heavy = {'torch', 'transformers', 'transformer_lens', 'pandas', 'matplotlib', 'seaborn'}\n"
        "heavy |= {'scipy.stats'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, PROJECT / script], capture_output=True, text=True, cwd=PROJECT
    )
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_wrong_flags_are_refused_in_one_line(script):
    done = run_script(script, "--famly", "demo", "--ouput_dir", "x")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--prompts_per_category", "0"], "at least 1"),
        (["--prompts_per_category", "ten"], "at least 1"),
        (["--prompts_per_category", "-3"], "prompts_per_category"),
        (["--prompts_per_category", "31"], "self_referent has 30 prompts"),
        (["--seed", str(2**32)], "from 0 to 4294967295"),
        (["--device", "gpu"], "none of auto, cpu"),
        (["--device", "cpu", "--device_map", "auto"], "give one of them"),
        (["--system_prompt", "x"], "--prompt_format chat"),
        (["--trust_remote_code"], "40-digit"),
        (["--trust_remote_code", "--revision", "main"], "40-digit"),
        (["--prompts", "no_such_file.json"], "no such file"),
        (["--output_dir", "a_file"], "is a file"),
        (["--prompt_format", "chat", "--bos", "never"], "chat template"),
    ],
)
def test_bad_requests_fail_before_a_model_is_loaded(flags, named, tmp_path):
    (tmp_path / "a_file").touch()
    done = run_script(
        "activation_analysis.py", "--model_id", "./no_such_model", *flags, cwd=tmp_path
    )
    assert done.returncode == 2
    assert named in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a_file"]


def test_two_runs_are_bit_identical_and_self_describing(tiny, tmp_path):
    files = []
    for _ in range(2):
        done = run_script(
            "activation_analysis.py",
            "--model_id",
            tiny,
            "--prompts_per_category",
            "3",
            "--raw",
            "patterns",
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        folder = (tmp_path / "results_activation_analysis/latest_run").resolve()
        files.append(hashlib.sha256((folder / "attention.npz").read_bytes()).hexdigest())
        assert str(folder.name) in done.stdout
    assert files[0] == files[1]
    config = json.loads((folder / "experiment_config.json").read_text())
    assert config["status"] == "complete"
    assert config["prompts"]["n"] == 12
    assert config["model"]["n_heads"] == 4
    patterns = npz.read_npz(folder / "raw_blocks_1_attn_pattern.npz", ["patterns", "n_tokens"])
    run = output_manager.load_run(folder)
    assert patterns["patterns"].shape[:2] == (12, 4)
    last = int(patterns["n_tokens"][0]) - 1
    entropy = entropies.attention_entropy(patterns["patterns"][0, :, last])
    np.testing.assert_allclose(run.entropy[0, 1, :, last], entropy, atol=1e-6)
    summary = json.loads((folder / "activations.json").read_text())
    np.testing.assert_allclose(
        summary["normalised"]["rfc"], indices.layer_indices(run)["rfc"], rtol=1e-6
    )


def test_raw_full_saves_what_the_hooks_gave(tiny, tmp_path):
    done = run_script(
        "activation_analysis.py",
        "--model_id",
        tiny,
        "--prompts_per_category",
        "1",
        "--raw",
        "full",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "results_activation_analysis/latest_run"
    for name, width in (("raw_blocks_2_mlp_post", 48), ("raw_embed", 32), ("raw_ln_final", 32)):
        arrays = npz.read_npz(folder / f"{name}.npz", ["values", "n_tokens"])
        assert arrays["values"].shape[0] == 4
        assert arrays["values"].shape[2] == width
        assert abs(arrays["values"][0, 0]).sum() > 0
        assert (arrays["values"][0, arrays["n_tokens"][0] :] == 0).all()


def test_own_prompts_with_two_categories(tiny, tmp_path):
    own = {"self_referent": ["Who are you?", "$x = [/INST]"], "neutral": ["What is rain?", "=1+1"]}
    (tmp_path / "own.json").write_text(json.dumps(own))
    done = run_script(
        "activation_analysis.py", "--model_id", tiny, "--prompts", "own.json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "no confounder prompts" in done.stdout
    run = output_manager.load_run(tmp_path / "results_activation_analysis/latest_run")
    assert run.counts == {"self_referent": 2, "neutral": 2}
    assert np.isnan(indices.layer_indices(run)["rsi"]).all()
    done = run_script("visualize_results.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "figures").glob("visualization_*.png"))) == 10


def test_pipeline_writes_everything_and_says_where(family):
    """The first set in the family's folders, the second in a folder below; edits of the crossed."""
    folder, printed = family
    for place, n_figures in (("tiny", 10), ("tiny/crossed", 11)):
        for name in ("base", "instruct"):
            figures = (folder / "figures" / place / name).glob("visualization_*.png")
            assert len(list(figures)) == n_figures
            assert (folder / "analysis_results" / place / name / "head_ranking.csv").is_file()
        results = folder / "results_activation_analysis" / place
        base, instruct = (
            output_manager.load_run(results / link) for link in ("latest_base", "latest_run")
        )
        assert (base.prompt_format, instruct.prompt_format) == ("raw", "chat")
        assert base.crossed == instruct.crossed == (place == "tiny/crossed")
        compared = folder / "comparison_results" / place
        drawn = ("rfc_rsi_comparison.png", "rfc_rsi_differences.png")
        for name in (*drawn, "detailed_comparison.csv"):
            assert (compared / name).is_file()
        rfc = indices.layer_indices(base)["rfc"].mean()
        assert f"{rfc:+.3f}" in printed
        assert "same weights" in json.dumps(
            json.loads((compared / "comparison_summary.json").read_text())
        )
    with open(folder / "analysis_results/tiny/multiverse.csv", newline="") as file:
        choices = {(row["side"], row["set"]) for row in csv.DictReader(file)}
    assert choices == {(s, name) for s in ("base", "instruct") for name in ("original", "crossed")}
    assert (folder / "figures/tiny/multiverse.png").is_file()
    assert printed.splitlines()[-1].startswith("analysis_results/tiny/report.html: ")
    assert printed.splitlines()[-1].endswith("open it in a browser")
    assert not (folder / "results_activation_analysis/tiny/latest_intervention").exists()
    effects = json.loads((results / "latest_intervention/effects.json").read_text())
    assert sum(row["role"] == "candidate" for row in effects["interventions"]) == 3
    assert (folder / "figures/tiny/crossed/intervention/effects.png").is_file()
    edited = output_manager.load_run(
        results / "latest_intervention" / effects["interventions"][0]["folder"]
    )
    assert (edited.prompt_format, edited.n_layers, edited.crossed) == ("raw", 3, True)


def test_pipeline_lets_both_models_answer_held_out_prompts(family):
    """The persons of four frames that chose no head; the base model also with each head cut."""
    folder, printed = family
    results = folder / "results_activation_analysis/tiny/crossed"
    plan = folder / "analysis_results/tiny/crossed/base/ablation_candidates.json"
    plan = json.loads(plan.read_text())
    base, instruct = (
        read_answers(results / link) for link in ("latest_base_generation", "latest_generation")
    )
    ids = [row["id"] for row in base["baseline"]]
    assert ids == [row["id"] for row in instruct["baseline"]] and set(ids) <= set(plan["held_out"])
    persons = Counter(row["category"] for row in base["baseline"])
    assert persons == dict.fromkeys(CATEGORIES, min(4, len(plan["held_out"]) // 4))
    assert len(base["interventions"]) == 3 and instruct["interventions"] == {}
    assert {len(row["token_ids"]) for row in base["baseline"]} <= set(range(1, 13))
    fed = [row["prompt"] for row in base["baseline"]]
    assert f"base: {len(fed)} prompts answered 4 times" in printed
    assert f"instruct: {len(fed)} prompts answered once" in printed
    assert [base["arguments"]["prompt_format"], instruct["arguments"]["prompt_format"]] == [
        "raw",
        "chat",
    ]


def test_answers_are_of_prompts_that_chose_no_head():
    """Every person of four held-out frames with one filler; of lists, four of each category."""
    crossed, _ = load_prompts("crossed", None)
    held_out = [prompt.id for prompt in crossed if prompt.frame not in ("copula_size", "do_origin")]
    chosen = family_plan.choose_answered(crossed, {"held_out": held_out})
    assert {prompt.id for prompt in chosen} <= set(held_out)
    assert Counter(Counter(p.frame for p in chosen).values()) == {4: 4}
    assert Counter(p.category for p in chosen) == dict.fromkeys(CATEGORIES, 4)
    assert len({(p.frame, p.filler) for p in chosen}) == 4
    lists, _ = load_prompts("original", None)
    chosen = family_plan.choose_answered(lists, {"held_out": [p.id for p in lists[1:]]})
    assert Counter(p.category for p in chosen) == dict.fromkeys(CATEGORIES, 4)
    assert lists[0] not in chosen and lists[0] in family_plan.choose_answered(lists, None)


def read_answers(link):
    """What a run of experiment.py holds, with the arguments of its config."""
    read = [json.loads((link / f"{name}.json").read_text()) for name in ANSWER_FILES]
    return read[0] | {"arguments": read[1]["arguments"]}


ANSWER_FILES = ("generation_results", "experiment_config")


def test_pipeline_ends_with_a_report_of_everything(family):
    """All four runs, the edits, what the base model answered, and how it answered with them."""
    folder, _ = family
    page = (folder / "analysis_results/tiny/report.html").read_text()
    effects = folder / "results_activation_analysis/tiny/crossed/latest_intervention/effects.json"
    for entry in json.loads(effects.read_text())["interventions"]:
        assert entry["folder"] in page
    results = folder / "results_activation_analysis/tiny"
    for link in ("latest_base", "latest_run", "crossed/latest_base", "crossed/latest_run"):
        assert f"tiny/{(results / link).resolve().relative_to(results.resolve())}" in page
    links = ("latest_base_generation", "latest_generation")
    answers = " ".join(str(resolved(results / "crossed", link)) for link in links)
    edits = resolved(results / "crossed", "latest_intervention")
    assert f"--interventions {edits} --answers {answers}" in page
    assert "answers changed" in page


def test_pipeline_loads_a_shared_model_once(tiny, tmp_path, monkeypatch):
    """Both analyses of both prompt sets and the edits of the base model take the same one."""
    monkeypatch.chdir(tmp_path)
    loads, real = [], instrument.load_model

    def load(spec, *rest):
        loads.append(spec.model_id)
        return real(spec, *rest)

    monkeypatch.setattr(instrument, "load_model", load)
    Path("f.json").write_text(json.dumps({"x": {side: {"model_id": tiny} for side in SIDES}}))
    command = ["--family", "x", "--families_file", "f.json", "--prompts_per_category", "12"]
    assert run_pipeline.main([*command, "--skip_visualization", "--skip_comparison"]) == 0
    assert loads == [tiny]
    results = Path("results_activation_analysis/x")
    assert (results / "crossed/latest_intervention").exists()
    assert not (results / "latest_intervention").exists()
    assert run_pipeline.main([*command, "--prompts", "crossed", "--skip_comparison"]) == 0
    assert (results / "latest_intervention").exists() and loads == [tiny] * 2


def test_pipeline_lists_the_families_and_what_each_takes(tmp_path):
    done = run_script("run_pipeline.py", "--list", cwd=tmp_path, COLUMNS="80")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert not [line for line in lines if len(line) > 80]
    for name, entry in json.loads((PROJECT / "model_families.json").read_text()).items():
        at = next(i for i, line in enumerate(lines) if line.split()[:1] == [name])
        shape, cost = entry["shape"], entry["cost"]
        told = [f"{shape['L']}", "x", f"{shape['H']}", *(f"{cost[k]:g}" for k in list(cost)[:2])]
        assert lines[at].split()[1:7] == [entry["base"]["model_id"], *told]
        minutes, (number, unit) = cost["minutes"], lines[at].split()[7:]
        assert unit == ("min" if minutes < 120 else "h")
        assert abs(float(number) * (1 if unit == "min" else 60) - minutes) <= 0.05 * minutes + 0.5
        assert lines[at + 1].split() == [entry["instruct"]["model_id"]]
    assert "gated" in done.stdout and "docs/SCALE.md" in done.stdout
    assert not list(tmp_path.iterdir())


def test_pipeline_lists_ones_own_families_whose_cost_nobody_states(tmp_path):
    pair = {side: {"model_id": f"./{side}"} for side in SIDES}
    (tmp_path / "f.json").write_text(json.dumps({"own": pair | {"note": "mine"}}))
    table = ("--table", "md", "t.md")
    done = run_script(
        "run_pipeline.py", "--list", "--families_file", "f.json", *table, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert ["own", "./base", *"----"] in [line.split() for line in done.stdout.splitlines()]
    assert "own: mine" in done.stdout and "./instruct" in (tmp_path / "t.md").read_text()


def test_the_hub_pair_without_a_hub_is_refused_in_one_line(tmp_path):
    """As far as `--family smollm2` goes without the network; nothing is left behind."""
    empty = {"HF_HOME": str(tmp_path / "hub")}
    done = run_script("run_pipeline.py", "--family", "smollm2", cwd=tmp_path, **empty)
    said = "error: --model_id HuggingFaceTB/SmolLM2-135M: the hub cannot be reached and the model"
    assert done.returncode == 2 and done.stderr.startswith(said), done.stderr
    assert done.stderr.count("\n") == 1 and not list(tmp_path.rglob("run_*"))


def test_pipeline_skips_what_it_is_told(family):
    folder, _ = family
    stages = ("analysis", "visualization", "comparison", "interventions", "answers", "report")
    flags = [f"--skip_{stage}" for stage in stages]
    report = folder / "analysis_results/tiny/report.html"
    before = report.stat().st_mtime_ns
    done = run_tiny_family(folder, *flags, "--prompts_per_category", "6")
    assert done.returncode == 0, done.stderr
    assert "comparison_results" not in done.stdout and "report.html" not in done.stdout
    assert "answered" not in done.stdout and report.stat().st_mtime_ns == before
    for place in ("tiny", "tiny/crossed"):
        assert len(list((folder / "results_activation_analysis" / place).glob("run_*"))) == 2


def test_pipeline_makes_nothing_again_that_is_there(family):
    """The same command does nothing again; with other heads asked for, the edits alone."""
    folder, _ = family
    results = folder / "results_activation_analysis/tiny/crossed"
    flags = ["--skip_visualization", "--skip_comparison", "--prompts_per_category", "6"]
    runs = set(results.glob("*_2*"))
    assert sorted(path.name.split("_")[0] for path in runs) == [
        *["generation"] * 2,
        "intervention",
        *["run"] * 2,
    ]
    done = run_tiny_family(folder, "--skip_analysis", *flags, "--table", "md", "t.md")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("skipped: results_activation_analysis/tiny/") == 7
    assert done.stdout.splitlines()[-2].startswith("analysis_results/tiny/report.html: ")
    page = (folder / "analysis_results/tiny/report.html").read_text()
    assert "--interventions" in page and "answers changed" in page
    assert f"crossed, edits: skipped: {resolved(results, 'latest_intervention')} is there" in (
        done.stdout
    )
    assert set(results.glob("*_2*")) == runs and "BH" in (folder / "t.md").read_text()
    done = run_tiny_family(folder, "--skip_analysis", *flags, "--top_k", "1", "--seed", "123")
    assert done.returncode == 0, done.stderr
    assert "crossed, edits: made, the plan has changed" in done.stdout
    new = sorted(set(results.glob("*_2*")) - runs)
    assert [path.name.split("_")[0] for path in new] == ["generation", "intervention"]
    assert done.stdout.count("skipped") == 5 and "crossed, base answers: made" in done.stdout
    for path in new:
        config = json.loads((path / "experiment_config.json").read_text())
        assert len(config["interventions"]) == 1


def resolved(results, link):
    """The folder of the run that a link names, as it is printed."""
    name = (results / link).resolve().name
    return Path("results_activation_analysis/tiny/crossed", name)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "not JSON at line 1"),
        ("[]", "must be an object"),
        ('{"../x": {}}', "letters, digits"),
        ('{"y": {}}', "unknown; families.json has y"),
        ('{"x": []}', "x.base must be an object"),
        ('{"x": {"base": {"model_id": 3}}}', "x.base must be an object"),
        ('{"x": {"base": {"model_id": "a", "tpe": "b"}}}', "x.base.tpe"),
        ('{"x": {"base": {"model_id": "a", "prompt_format": "prose"}}}', "raw or chat"),
    ],
)
def test_bad_family_files(content, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("families.json").write_text(content)
    with pytest.raises(UserError, match=named):
        families_module.load_family("families.json", "x")


def test_built_in_families_are_well_formed():
    names = json.loads(families_module.FAMILIES_FILE.read_text())
    assert {"demo", "smollm2", "mistral", "qwen", "llama"} < set(names) and len(names) == 11
    for name in names:
        families_module.load_family(families_module.FAMILIES_FILE, name)


def test_prompts_script_prints_counts_pairs_and_null(tiny):
    words = run_script("prompts.py")
    assert "words, not tokens" in words.stdout
    tokens = run_script("prompts.py", "--model_id", tiny)
    assert tokens.returncode == 0, tokens.stderr
    assert "30 pairs, 0 of unequal length" in tokens.stdout
    assert "length null" in tokens.stdout


def test_reading_a_run_that_is_not_there(tmp_path):
    for script in ("visualize_results.py", "compare_base_instruct.py"):
        done = run_script(script, cwd=tmp_path)
        assert done.returncode == 2
        assert "no such folder" in done.stderr
        assert not (tmp_path / "figures").exists()


def test_a_report_reads_documents_as_the_run_did(tiny, tmp_path):
    """With the fields that were named, and in chat format a text is a turn; what fails is left."""
    rows = [{"n": "a", "text": "wrong", "body": "Who are you?"}, {"n": "b"}]
    rows += [{"n": "c", "body": "My name is Ada."}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    flags = ["--model_id", tiny, "--documents", path, "--text_field", "body", "--id_field", "n"]
    flags += ["--prompt_format", "chat", "--output_dir", tmp_path]
    assert activation_analysis.main([str(flag) for flag in flags]) == 3
    texts = report.read_texts((tmp_path / "latest_documents").resolve())
    assert texts == {"a": [("user", "Who are you?")], "c": [("user", "My name is Ada.")]}


def test_pipeline_frees_a_model_before_the_next_is_read(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other, alive, real = save_tiny("mistral", tmp_path / "other"), [], instrument.load_model

    def load(spec, *rest):
        gc.collect()
        alive.append([seen() is not None for seen in load.seen])
        loaded = real(spec, *rest)
        load.seen.append(weakref.ref(loaded.model))
        return loaded

    load.seen = []
    monkeypatch.setattr(instrument, "load_model", load)
    family = {"x": {"base": {"model_id": tiny}, "instruct": {"model_id": other}}}
    Path("f.json").write_text(json.dumps(family))
    command = ["--family", "x", "--families_file", "f.json", "--prompts_per_category", "1"]
    skipped = [f"--skip_{stage}" for stage in ("visualization", "comparison", "interventions")]
    assert run_pipeline.main([*command, *skipped]) == 0
    assert alive == [[], [False]]
