"""What a careless or hostile user may give a script, and the one line that comes back: what, where,
what is allowed.

Rows of the table of bad inputs that other test files do not prove. Exit code 2, one line on stderr
that is safe for a terminal, nothing written; where the input is only odd, the script runs.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
from huggingface_hub import errors

import activation_analysis
import analyze_results
import compare_base_instruct
import cross_model_correlation
import experiment
import interventions
import output_manager as om
import prompts
import run_pipeline
import visualize_results
from conftest import PROJECT
from hostile import CONFIG, effect_row, outcome, publish
from rolecircuits.capture import attention, instrument, tokens
from rolecircuits.drawing import family_summary
from rolecircuits.edits import bench
from rolecircuits.edits.plan import parse_entries
from rolecircuits.inputs import categories, parser
from rolecircuits.inputs import errors as input_errors
from rolecircuits.inputs.errors import UserError
from rolecircuits.inputs.specs import ModelSpec, PromptFormat
from rolecircuits.models import families, load
from rolecircuits.models import source as source_module
from rolecircuits.models.adapters import find_origin
from rolecircuits.runs import edit_results, files, npz, record
from rolecircuits.stats import profiles
from synthetic import make_run, save_run
from tiny_models import load_checked, save_tiny

HOSTILE = "\x1b[31mred\nline"
LONG = "x" * 300


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys, main, argv, *said):
    """The script ends with 2 and one line that holds every part of `said` and nothing that moves a
    terminal."""
    try:
        code = main(argv)
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and error[:-1].isprintable(), (code, error)
    for part in said:
        assert part in error
    return error


READS = {
    "prompts": (prompts.main, ["--prompts"]),
    "activation_analysis": (activation_analysis.main, ["--prompts"]),
    "documents": (activation_analysis.main, ["--documents"]),
    "interventions": (interventions.main, ["--config_file"]),
    "experiment": (experiment.main, ["--config_file"]),
    "run_pipeline": (run_pipeline.main, ["--family", "x", "--families_file"]),
    "visualize_results": (visualize_results.main, ["--input_dir"]),
    "analyze_results": (analyze_results.main, ["--input_dir"]),
    "compare_base_instruct": (compare_base_instruct.main, ["--base_dir"]),
}


@pytest.mark.parametrize("name", READS)
def test_every_path_of_every_script_is_named_and_escaped(here, capsys, name):
    main, flags = READS[name]
    refused(capsys, main, [*flags, HOSTILE], r"\x1b[31mred\nline: no such f")
    refused(capsys, main, [*flags, LONG], "File name too long")
    assert not os.listdir(here)


def test_comparisons_are_named_and_escaped(here, capsys):
    refused(
        capsys,
        cross_model_correlation.main,
        ["--comparison", f"a={HOSTILE}"],
        r"\x1b[31mred\nline: no such file",
    )


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--prompts", r"\udcff: no such file"),
        ("--system_prompt", "not UTF-8"),
        ("--model_id", r"\udcff: no"),
    ],
)
def test_bytes_that_are_not_utf8(here, capsys, flag, said):
    """The shell hands them on as half surrogate pairs, which no tokenizer takes."""
    refused(capsys, activation_analysis.main, ["--prompt_format", "chat", flag, "\udcff"], said)


def test_a_pipe_is_no_prompt_file(here, capsys):
    os.mkfifo("pipe")
    refused(capsys, prompts.main, ["--prompts", "pipe"], "pipe: is not a regular file")


def test_a_file_that_may_not_be_read(here, capsys, monkeypatch):
    Path("p.json").write_text("{}")

    def deny(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", deny)
    refused(capsys, prompts.main, ["--prompts", "p.json"], "p.json: Permission denied")


def test_many_keys_are_read_in_one_pass(here, capsys):
    """Looking for duplicates by counting every key took minutes for a file of this size."""
    Path("p.json").write_text(json.dumps({str(i): [] for i in range(200_000)}))
    said = "has 200000 categories; allowed are 2 to 16"
    refused(capsys, prompts.main, ["--prompts", "p.json"], said)
    double = {"0": [], **{str(i): [] for i in range(200_000)}}
    Path("p.json").write_text(json.dumps(double)[:-1] + ', "0": []}')
    refused(capsys, prompts.main, ["--prompts", "p.json"], "appears twice")


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--prompts_per_category", "9" * 5000, "not a whole number of at least 1"),
        ("--batch_size", "9" * 12, "at least 1 and at most"),
        ("--seed", "9" * 5000, "from 0 to 4294967295"),
        ("--device", "cuda:" + "9" * 5000, "none of auto, cpu"),
        ("--raw", HOSTILE, "choose from"),
    ],
)
def test_absurd_numbers_and_choices_are_short_lines(capsys, flag, value, said):
    assert len(refused(capsys, activation_analysis.main, [f"{flag}={value}"], said)) < 300


def test_absurd_number_of_controls(capsys):
    refused(capsys, interventions.main, ["--controls", "9" * 5000], "from 0 to 100")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FileNotFoundError(2, "No such file or directory", HOSTILE), 2),
        (PermissionError(13, "Permission denied", "x"), 2),
        (OSError(36, "File name too long", LONG), 2),
        (OSError(28, "No space left on device", "x"), 1),
        (OSError(5, "Input/output error", "x"), 1),
        (PermissionError(13, "Permission denied"), 1),
        (UserError(HOSTILE), 2),
        (input_errors.RunFailed(HOSTILE), 1),
    ],
)
def test_a_path_that_cannot_be_used_is_a_wrong_request(capsys, error, code):
    def run(args):
        raise error

    assert parser.run_script(parser.Parser().parse_args, run, []) == code
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and shown[:-1].isprintable()


def make_output(kind):
    Path("run").mkdir()
    Path("run/manifest.json").write_text("{}")
    Path("dangling").symlink_to("nowhere")
    Path("taken/latest_run").mkdir(parents=True)
    return {
        "dangling": "a symlink to nowhere",
        "run": "is a run folder",
        "taken": "not a symlink",
        LONG: "too long",
    }[kind]


@pytest.mark.parametrize("kind", ["dangling", "run", "taken", LONG])
def test_output_folders_are_refused_before_the_work(here, capsys, kind):
    """The model does not exist either: the folder is looked at first."""
    said = make_output(kind)
    refused(capsys, activation_analysis.main, ["--model_id", "./none", "--output_dir", kind], said)
    if kind != "taken":
        refused(capsys, analyze_results.main, ["--input_dir", "none", "--output_dir", kind], said)


def test_options_of_prompts_that_would_be_ignored(capsys):
    refused(capsys, prompts.main, ["--system_prompt", "x"], "needs --prompt_format chat")


def python(*command, **environment):
    unset = ("DISPLAY", "WAYLAND_DISPLAY", "LANG", "LC_ALL", "PYTHONUNBUFFERED")
    env = {name: value for name, value in os.environ.items() if name not in unset} | environment
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=PROJECT, env=env, capture_output=True, check=False
    )


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("environment", [ASCII, {"PYTHONIOENCODING": "latin-1:strict"}])
def test_a_terminal_that_cannot_show_a_prompt_gets_escapes(tmp_path, environment):
    texts = {
        "self_referent": ["a"],
        "neutral": ["b"],
        "confounder": ["I \U0001f600 :smile:?"],
        "third_person": ["她?"],
    }
    path = tmp_path / "p\u00e9.json"
    path.write_text(json.dumps(texts))
    done = python("prompts.py", "--prompts", path, **environment)
    assert done.returncode == 0, done.stderr
    assert rb"\U0001f600 :smile:?" in done.stdout and rb"\u5979?" in done.stdout


def test_no_print_of_any_script_can_fail_on_a_character():
    code = "from rolecircuits.inputs import parser as cli; "
    code += "cli.run_script(cli.Parser().parse_args, lambda args: print('a\\u5979'), [])"
    done = python("-c", code, PYTHONIOENCODING="ascii:strict")
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        rb"a\u5979" + os.linesep.encode(),
        b"",
    )


def test_a_process_without_standard_output(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert parser.run_script(parser.Parser().parse_args, lambda args: None, []) == 0


def test_figures_need_no_display_no_utf8_no_backend_and_no_latex(tmp_path):
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nsavefig.dpi: 7\n")
    environment = ASCII | {"MPLBACKEND": "TkAgg", "MATPLOTLIBRC": str(tmp_path / "matplotlibrc")}
    folder = save_run(
        make_run(n_layers=1, n_heads=1, per_category=1, model_id="m\u00e9 \u5979 $x$"),
        tmp_path / "r\u00e9s",
    )
    out = tmp_path / "figur\u00e9s"
    done = python("visualize_results.py", "--input_dir", folder, "--output_dir", out, **environment)
    assert done.returncode == 0, done.stderr
    assert len(list(out.glob("*.png"))) == 10
    assert python("-c", "import rolecircuits.drawing.style", MPLBACKEND="nonsense").returncode == 0


def test_a_reader_that_goes_away_is_one_line():
    code = "import os, sys, prompts; os.close(1); os.dup2(os.open('/dev/full', os.O_WRONLY), 1); "
    code += "sys.exit(prompts.main([]))"
    full = python("-c", code)
    assert (
        full.returncode == 1 and full.stderr.count(b"\n") == 1 and b"No space left" in full.stderr
    )
    for last, said in (
        ("cli.run_script(cli.Parser().parse_args, print, [])", b"went away"),
        ("prompts.main([])", b""),
    ):
        code = "import os, sys, prompts; from rolecircuits.inputs import parser as cli; "
        code += f"r, w = os.pipe(); os.close(r); os.dup2(w, 1); sys.exit({last})"
        gone = python("-c", code)  # rich ends a table that nobody reads without a word
        assert gone.returncode == 1 and gone.stderr.count(b"\n") <= 1 and said in gone.stderr


# Models


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny("llama", tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return load.load_tokenizer(tiny)


@pytest.fixture
def model(tiny, tmp_path):
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tokenizer(folder, **changes):
    path = folder / "tokenizer.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(whole | {"model": whole["model"] | changes}))


CONFIGS = {
    "not an object": ("[]", "config.json cannot be read"),
    "deep": ("[" * 100_000, "config.json cannot be read"),
    "no heads": ({"num_attention_heads": 0}, "config.json cannot be read"),
    "no layers": ({"num_hidden_layers": -1}, "num_hidden_layers -1; a whole number of at least 1"),
    "layers as text": ({"num_hidden_layers": "3"}, "num_hidden_layers"),
    "unknown type": ({"model_type": HOSTILE}, r"\x1b[31mred"),
    "architectures": (
        {"architectures": [7]},
        "architectures in its config.json is not a list of texts",
    ),
    "architecture text": ({"architectures": "LlamaForCausalLM"}, "not a list of texts"),
    "layer types": ({"layer_types": "x"}, "layer_type"),
    "context": ({"max_position_embeddings": None}, "max_position_embeddings"),
    "activation": ({"hidden_act": "zzz"}, "zzz"),
    "quantized": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "optimum"),
    "quantized text": ({"quantization_config": "x"}, "config.json cannot be read"),
    "more layers": ({"num_hidden_layers": 5}, "weights lack 18 parameters"),
    "other vocabulary": (
        {"vocab_size": 100},
        "has token id 10576, the model has embeddings for 100 tokens",
    ),
    "other heads": ({"num_attention_heads": 8}, "config.json asks for"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_config_that_makes_no_sense_is_one_line(model, name, capsys):
    change, said = CONFIGS[name]
    if isinstance(change, str):
        (model / "config.json").write_text(change)
    else:
        edit_json(model / "config.json", **change)
    out = str(model.parent / "out")
    refused(capsys, activation_analysis.main, ["--model_id", str(model), "--output_dir", out], said)
    assert not Path(out).exists()


def test_parameters_that_are_missing_are_not_invented(model, capsys):
    """transformers fills them with random numbers and only warns: a run of noise that looked like a
    run."""
    weights = safetensors.torch.load_file(model / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layers.2.self_attn.q" not in name}
    safetensors.torch.save_file(kept, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=r"weights lack 1 parameters .*layers\.2\.self_attn\.q_proj"
    ):
        load_checked(str(model), device="cpu")


def test_parameters_of_another_size_are_not_invented(model):
    edit_json(model / "config.json", vocab_size=100)
    said = r"is \[49152, 32\] in the weights, its config.json asks for \[100, 32\]"
    with pytest.raises(UserError, match=said):
        load_checked(str(model), device="cpu")


def test_parameters_that_are_not_used_are_said(model, capsys):
    edit_json(model / "config.json", num_hidden_layers=2)
    assert load_checked(str(model), device="cpu").n_layers == 2
    assert "note: 9 parameters in the weights are not used" in capsys.readouterr().out


TOKENIZERS = {
    "bare exception": lambda folder: edit_tokenizer(folder, type="none"),
    "merges": lambda folder: edit_tokenizer(folder, merges=["a b c d"]),
    "root": lambda folder: (folder / "tokenizer_config.json").write_text("[]"),
    "bytes": lambda folder: (folder / "tokenizer.json").write_bytes(b"\xff"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_damaged_tokenizer_is_one_line(model, name):
    TOKENIZERS[name](model)
    with pytest.raises(UserError, match="no readable tokenizer"):
        load.load_tokenizer(str(model))


def test_tokens_without_an_embedding_are_refused(model):
    vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    edit_tokenizer(model, vocab={token: number + 10**6 for token, number in vocabulary.items()})
    with pytest.raises(UserError, match="has embeddings for 49152 tokens; its tokenizer"):
        load_checked(str(model), device="cpu")


@pytest.mark.parametrize(
    "name",
    ["../model/model.safetensors", "/etc/model.safetensors", "..", "a\0.safetensors", 7, "x.bin"],
)
def test_an_index_names_files_of_its_own_folder_only(model, name):
    """transformers joins these names to the folder, `..` and all."""
    (model / "model.safetensors").rename(model / "part.safetensors")
    (model / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": {"a": name}})
    )
    with pytest.raises(UserError, match=r"index\.json: weight_map names"):
        load_checked(str(model), device="cpu")


def test_the_file_that_is_read_is_the_file_that_is_hashed(model):
    shutil.copy(model / "model.safetensors", model / "other.safetensors")
    (model / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "other.safetensors"}})
    )
    assert [path.name for path in source_module.weight_files(model)] == ["model.safetensors"]


def test_a_folder_has_no_revision_and_runs_no_code(model, capsys):
    trap = model / "ran"
    (model / "code.py").write_text(f"open({str(trap)!r}, 'w')")
    edit_json(
        model / "config.json", auto_map={"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}
    )
    argv = ["--model_id", str(model), "--output_dir", str(model.parent / "out")]
    refused(
        capsys,
        activation_analysis.main,
        [*argv, "--revision", "main"],
        "is a folder, which has no revisions",
    )
    refused(
        capsys,
        activation_analysis.main,
        [*argv, "--trust_remote_code", "--revision", "a" * 40],
        "only for hub models",
    )
    assert load_checked(str(model), device="cpu").n_layers == 3
    assert not trap.exists()


@pytest.mark.parametrize(
    ("file", "auto_map", "allowed"),
    [
        ("config.json", {"AutoConfig": "code.C"}, True),
        ("config.json", {"AutoConfig": "other/repository--code.C"}, False),
        ("tokenizer_config.json", {"AutoTokenizer": [None, "other/repository--code.T"]}, False),
    ],
)
def test_a_pinned_model_may_not_borrow_unpinned_code(
    tmp_path, monkeypatch, file, auto_map, allowed
):
    (tmp_path / file).write_text(json.dumps({"auto_map": auto_map}))

    def download(source, name, revision):
        assert revision == "a" * 40
        if not (tmp_path / name).exists():
            raise errors.EntryNotFoundError.__new__(errors.EntryNotFoundError, name)
        return tmp_path / name

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    if allowed:
        source_module.check_code_source("some/model", "a" * 40)
    else:
        with pytest.raises(
            UserError, match=f"auto_map in its {file} names code of another repository"
        ):
            source_module.check_code_source("some/model", "a" * 40)


@pytest.mark.parametrize("config", ['{"base_model_name_or_path": "someone/else"}', "[]", "{}"])
def test_an_adapter_that_does_not_say_what_it_is(model, config):
    """transformers takes any folder with an adapter_config.json for an adapter."""
    (model / "adapter_config.json").write_text(config)
    with pytest.raises(UserError, match="adapter_config.json does not say of what kind it is"):
        find_origin(ModelSpec(str(model)))


@pytest.mark.parametrize("model_id", ["~nobody-of-that-name/m", LONG, "\0", "a/../../etc"])
def test_model_ids_that_are_no_path(model_id):
    with pytest.raises(UserError, match="no such"):
        source_module.pin_revision(source_module.locate_model(model_id))


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1/0 }}",
        "{% if %}",
        "{{ messages.x.y }}",
        "{{ range(10**9) }}",
        "{{ messages + 1 }}",
        "{{ messages[5].content }}",
    ]
    + ["{{ ''.__class__.__mro__ }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"],
)
def test_a_chat_template_that_fails_is_one_line(tokenizer, template, monkeypatch):
    monkeypatch.setattr(tokenizer.hf, "chat_template", template)
    with pytest.raises(UserError, match="the chat template refuses"):
        tokens.tokenize_prompts(
            prompts.select_prompts(per_category=1), tokenizer, PromptFormat("chat")
        )


def test_odd_names_do_not_lose_a_finished_run(tiny, here, capsys):
    """A file name that is not UTF-8 ended the run after all the work: its record could not be
    written."""
    odd = "o\udcff\x1b[31m"
    assert (
        activation_analysis.main(
            ["--model_id", tiny, "--prompts_per_category", "1", "--output_dir", odd]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert r"o\udcff\x1b[31m" in out and "\x1b" not in out
    config = om.load_run(Path(odd) / "latest_run").config
    assert config["arguments"]["output_dir"] == odd


# Interventions and families


def test_more_heads_than_a_folder_name_holds():
    entry = {"type": "layer_heads", "layer": 1, "head": list(range(100)), "method": "mean"}
    with pytest.raises(
        UserError, match=r"plan: interventions\[0\]\.head lists 100 heads.*head: null"
    ):
        parse_entries([entry], "plan")


def test_a_key_that_is_half_a_character():
    """Found by fuzzing."""
    entry = {"type": "head", "layer": 1, "head": 1, "method": "zero_out", "\ud800": None}
    with pytest.raises(UserError, match=r"plan: interventions\[0\]: unknown key '\\\\ud800'"):
        parse_entries([entry], "plan")


@pytest.mark.parametrize(
    "content", ["[", "{}", '{"model": []}', '{"model": {"id": 7}}', "[" * 100_000]
)
def test_a_patch_source_that_names_no_model(here, content):
    Path("run").mkdir()
    Path("run/experiment_config.json").write_text(content)
    with pytest.raises(UserError, match=r"source run: .*names one"):
        bench.resolve_source("run")


def test_a_patch_source_is_looked_for_before_the_model_is_loaded(tiny, here, capsys, monkeypatch):
    monkeypatch.setattr(instrument, "load_model", None)
    entry = {"type": "patch", "layer": 1, "head": 0, "method": "other_model", "source": "./nowhere"}
    Path("plan.json").write_text(json.dumps({"schema_version": 1, "interventions": [entry]}))
    argv = ["--model_id", tiny, "--config_file", "plan.json"]
    refused(capsys, interventions.main, argv, "source ./nowhere: ", "no such folder")


def test_family_values_may_begin_with_a_hyphen(here):
    args = run_pipeline.parse_args(["--family", "x"])
    entry = {"model_id": "-m", "prompt_format": "chat", "system_prompt": "--seed"}
    flags = families.stage_flags("instruct", {"instruct": entry}, args, "x")
    each = run_pipeline.parse_stages({"instruct": flags})["instruct"]
    assert (each.model_id, each.system_prompt, each.seed) == ("-m", "--seed", 123)


def test_unknown_key_of_a_family(here, capsys):
    pair = {"base": {"model_id": "m"}, "instruct": {"model_id": "m"}}
    Path("f.json").write_text(json.dumps({"x": pair | {"insturct": {}}}))
    argv = ["--family", "x", "--families_file", "f.json"]
    said = "x.insturct: unknown; a family has base, instruct, prompts, note, shape and cost"
    refused(capsys, run_pipeline.main, argv, said)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"note": 1}, "x.note must be a text"),
        ({"cost": {"weights_gb": 1}}, "x.cost must be an object of numbers above 0"),
        ({"cost": {"weights_gb": "1", "peak_gb": 1, "minutes": 1}}, "x.cost must be"),
        ({"cost": {"weights_gb": 0, "peak_gb": 1, "minutes": 1}}, "x.cost must be"),
        ({"cost": {"weights_gb": 1, "peak_gb": 1, "minutes": 1, "tied": True}}, "x.cost must be"),
        ({"shape": []}, "x.shape must be"),
        ({"shape": dict.fromkeys("LHKhdfV", 1) | {"tied": 1}}, "true or false for tied, gated"),
        ({"shape": dict.fromkeys("LHKhdfV", True)}, "x.shape must be"),
    ],
)
def test_what_a_family_takes_is_checked(here, capsys, wrong, said):
    pair = {side: {"model_id": "m"} for side in ("base", "instruct")}
    Path("f.json").write_text(json.dumps({"x": pair | wrong}))
    refused(capsys, run_pipeline.main, ["--list", "--families_file", "f.json"], said)


def test_results_on_another_disk_behind_a_link(here, capsys):
    (here / "disk").mkdir()
    (here / "results_activation_analysis").symlink_to(here / "disk")
    for link in ("latest_base", "latest_run"):
        save_run(make_run(n_layers=2, n_heads=1, per_category=1), here / "disk" / "x", link)
    args = run_pipeline.parse_args(["--family", "x", "--skip_visualization"])
    family_summary.print_main_numbers("x", [families.Study("x", args, {}, {})])
    assert "results_activation_analysis/x/run_" in capsys.readouterr().out


# Reading runs


@pytest.fixture
def run_folder(tmp_path):
    return save_run(make_run(n_layers=2, n_heads=1, per_category=2), tmp_path / "results")


def forge_config(folder, **changes):
    edit_json(folder / "experiment_config.json", **changes)
    om.write_manifest(folder)


@pytest.mark.parametrize("seed", ["abc", -1, 1.5, None, [1], True, 2**32])
def test_a_seed_that_no_generator_takes(run_folder, seed):
    forge_config(run_folder, seed=seed)
    with pytest.raises(
        UserError, match=r"experiment_config\.json: seed is .*whole number from 0 to 4294967295"
    ):
        om.load_run(run_folder)


def test_a_hash_that_is_no_text(run_folder):
    forge_config(run_folder, model={"id": "m", "weights_sha256": {}})
    with pytest.raises(UserError, match=r"model\.weights_sha256 is \{\}"):
        om.load_run(run_folder)


@pytest.mark.parametrize("name", ["manifest.json", "experiment_config.json", "prompts.jsonl"])
def test_a_number_too_long_to_read(run_folder, name):
    (run_folder / name).write_text("9" * 5000)
    if name != "manifest.json":
        om.write_manifest(run_folder)
    with pytest.raises(UserError, match=f"{name}: damaged"):
        om.load_run(run_folder)


def test_prompts_may_hold_line_separators(tmp_path):
    """U+2028, U+2029 and U+0085 end a line for str.splitlines, which made such runs unreadable."""
    run = make_run(n_layers=1, n_heads=1, per_category=1)
    for row, separator in zip(run.prompts, "\u2028\u2029\x85\x0b", strict=True):
        row["text"] = f"Who{separator}are you?"
    assert om.load_run(save_run(run, tmp_path)).prompts == run.prompts


def forge_array(folder, name, array):
    with np.load(folder / "attention.npz", allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files} | {name: array}
    np.savez(folder / "attention.npz", **arrays)
    om.write_manifest(folder)


@pytest.mark.parametrize("name", ["prompt_id", "category"])
@pytest.mark.parametrize("order", "<>")
def test_characters_that_do_not_exist(run_folder, name, order):
    forge_array(run_folder, name, np.full(8, 0x110000, f"{order}u4").view(f"{order}U1"))
    with pytest.raises(UserError, match=f"{name} holds 1114112, which is not a character"):
        om.load_run(run_folder)


@pytest.mark.parametrize("value", [-1, 4, 2**62])
def test_edges_longer_than_the_prompt(run_folder, value):
    forge_array(run_folder, "edge_tokens", np.full(8, value))
    with pytest.raises(UserError, match="edge_tokens is outside 0 to half"):
        om.load_run(run_folder)


def test_an_encrypted_archive(run_folder):
    data = bytearray((run_folder / "attention.npz").read_bytes())
    place = data.find(b"PK\x01\x02")
    data[place + 8] |= 1
    (run_folder / "attention.npz").write_bytes(data)
    om.write_manifest(run_folder)
    with pytest.raises(UserError, match=r"attention\.npz: damaged: .*encrypted"):
        om.load_run(run_folder)


def test_an_archive_of_another_compression_that_is_damaged(run_folder):
    path = run_folder / "attention.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("entropy.npy", b"x" * 1000)
    data = bytearray(path.read_bytes())
    data[50:60] = bytes(10)
    path.write_bytes(data)
    om.write_manifest(run_folder)
    with pytest.raises(UserError, match=r"attention\.npz: damaged"):
        om.load_run(run_folder)


@pytest.mark.parametrize(
    "header", ["(" * 300, "{[]: 1}", "'", "{'descr': ('<f4', (2**31, 2**31))}", "1" * 3000, "\\"]
)
def test_headers_that_pythons_parser_refuses(tmp_path, header):
    text = header.encode()
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
    with pytest.raises(UserError, match=r"a\.npz: damaged"):
        npz.read_npz(tmp_path / "a.npz", ["a"])


def test_a_bomb_is_refused_by_the_size_it_declares(tmp_path, monkeypatch):
    """16 MiB of zeros in 16 kB, with an honest header: what counts is the memory that it would
    take."""
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(2**21))
    assert (tmp_path / "a.npz").stat().st_size < 20_000
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=2**24 - 1))
    monkeypatch.setattr(np, "load", None)
    with pytest.raises(UserError, match=r"its arrays take 0\.0 GiB, 0\.0 GiB of memory are free"):
        npz.read_npz(tmp_path / "a.npz", ["a"])


def test_an_archive_of_many_members(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for i in range(npz.MAX_MEMBERS + 1):
            archive.writestr(f"{i}.npy", b"")
    with pytest.raises(UserError, match="has 1001 members"):
        npz.read_npz(tmp_path / "a.npz", ["0"])


@pytest.mark.parametrize("name", ["attention.npz", "prompts.jsonl", "experiment_config.json"])
def test_a_run_reads_nothing_outside_itself(run_folder, name):
    outside = run_folder.parent / "outside"
    (run_folder / name).rename(outside)
    (run_folder / name).symlink_to(outside)
    om.write_manifest(run_folder)
    with pytest.raises(UserError, match=f"{name}: missing"):
        om.load_run(run_folder)


def test_an_intervention_run_draws_no_folder_outside_itself(tmp_path):
    outside = save_run(make_run(n_layers=2, n_heads=1, per_category=1), tmp_path / "results")
    rows = [effect_row("all")]
    folder = publish(
        tmp_path / "run", {"effects.json": json.dumps({"rows": rows}).encode()}, CONFIG
    )
    (folder / "baseline").symlink_to(outside)
    with pytest.raises(UserError, match="baseline: is a symlink"):
        visualize_results.visualize_interventions(folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "rows is missing or empty"),
        ([7], r"rows\[0\] lacks intervention"),
        ([effect_row("all") | {"kl": "0.1"}], r"rows\[0\]\.kl is 0\.1; it is damaged"),
        ([{k: v for k, v in effect_row("all").items() if k != "kl_rank"}], "lacks kl_rank; run i"),
        ([effect_row("all") | {"pool": None}], "a rank of kl without a pool"),
        ([effect_row("all") | {"controls": 3}], r"rows\[0\]\.controls is '3'; it is damaged"),
        ([effect_row("all") | {"kl_low": None}], "half an interval of kl"),
        ([effect_row("neutral")], "has no row for all categories"),
        ([effect_row("all"), effect_row("a/b")], r"rows\[1\]\.category: category 'a/b': a name"),
        ([effect_row("all"), effect_row("x" * 41)], r"rows\[1\]\.category: category 'x{41}': a"),
        ([effect_row("all") | {"category": 7}], r"rows\[0\]\.category is '7'; it is damaged"),
        ([effect_row("all") | {"role": "boss"}], "role is 'boss'"),
        (
            [effect_row("all") | {"role": "control"}, effect_row("neutral")],
            "has no row for all categories",
        ),
        ([effect_row("all") | {"intervention": ""}], r"rows\[0\]\.intervention is"),
    ],
)
def test_effects_that_cannot_be_drawn(tmp_path, rows, said):
    folder = publish(
        tmp_path / "run", {"effects.json": json.dumps({"rows": rows}).encode()}, CONFIG
    )
    with pytest.raises(UserError, match=said):
        edit_results.read_effects(folder)


def test_effects_of_any_category_are_read(tmp_path):
    rows = [effect_row("all"), effect_row("selfish"), effect_row("neutral")]
    folder = publish(
        tmp_path / "run", {"effects.json": json.dumps({"rows": rows}).encode()}, CONFIG
    )
    assert edit_results.read_effects(folder) == rows


def test_effects_are_checked_against_the_manifest(tmp_path):
    folder = publish(
        tmp_path / "run",
        {"effects.json": json.dumps({"rows": [effect_row("all")]}).encode()},
        CONFIG,
    )
    (folder / "effects.json").write_text(json.dumps({"rows": [effect_row("all") | {"n": 9}]}))
    with pytest.raises(UserError, match="its SHA-256 is not the manifest's"):
        visualize_results.visualize_interventions(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def save_sweep(root, config):
    """A sweep run of 2 layers x 3 heads."""
    arrays = {"kl": np.ones((2, 3, 4)), "kl_by_prompt": np.ones((2, 3, 8))}
    arrays |= {"category": np.array(categories.CATEGORIES)}
    arrays |= {name: np.ones((2, 3)) for name in edit_results.INDEX_CHANGES}
    npz.write_npz(root.parent / "head_effects.npz", arrays)
    return publish(
        root, {"head_effects.npz": (root.parent / "head_effects.npz").read_bytes()}, config
    )


SWEPT = {
    "the same id": (CONFIG, None),
    "the same weights": ({"model": {"id": "copy", "weights_sha256": "1"}}, None),
    "another model": (
        {"model": {"id": "other"}},
        "other weights (other) than the interventions (m)",
    ),
    "another revision": ({"model": {"id": "m", "revision": "2"}}, "other weights (m)"),
    "other weights": ({"model": {"id": "m", "weights_sha256": "2"}}, "other weights (m)"),
    "another format": (
        {"prompts": {"format": "chat"}},
        "format chat, those of the interventions raw",
    ),
    "another system text": (
        {"prompts": {"format": "raw", "system_prompt": "\x1b[31m"}},
        r"system_prompt \x1b[31m, those of the interventions None",
    ),
}


@pytest.mark.parametrize("name", SWEPT)
def test_a_sweep_is_drawn_only_beside_interventions_on_the_same_model(tmp_path, capsys, name):
    """latest_sweep may be another model's: left out with a note, refused where it is asked for."""
    changed, reason = SWEPT[name]
    model = {"weights_sha256": "1"} if "weights_sha256" in changed.get("model", {}) else {}
    config = CONFIG | {"model": CONFIG["model"] | model}
    rows = json.dumps({"rows": [effect_row("all")]}).encode()
    folder = publish(tmp_path / "latest_intervention", {"effects.json": rows}, config)
    sweep = save_sweep(tmp_path / "latest_sweep", config | changed)
    paths = visualize_results.visualize_interventions(folder, tmp_path / "out")
    said = capsys.readouterr().out
    drawn = ["effects.png", *([] if reason else ["head_sweep.png"])]
    assert [path.name for path in paths] == drawn
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == drawn
    assert ("note: " in said) == bool(reason) and (reason or "") in said and "\x1b" not in said
    request = {"output_dir": tmp_path / "asked", "sweep_dir": sweep}
    if reason:
        with pytest.raises(UserError):
            visualize_results.visualize_interventions(folder, **request)
        assert not (tmp_path / "asked").exists()
    else:
        assert len(visualize_results.visualize_interventions(folder, **request)) == 2


@pytest.mark.parametrize(("layers", "heads", "each"), [(1, 1, 1), (80, 64, 1)])
def test_one_prompt_and_large_models_through_every_reader(here, layers, heads, each):
    """80 layers x 64 heads and 1 x 1; one prompt a category gives values without intervals.
    (Figures: test_figures.py.)

    Every head of 80 x 64 is not tested here: that takes half a minute.
    """
    for link, effect in (("latest_base", 0.1), ("latest_run", 0.3)):
        save_run(
            make_run(n_layers=layers, n_heads=heads, per_category=each, effect=effect), "r", link
        )
    assert layers > 1 or outcome(analyze_results.main, ["--input_dir", "r/latest_run"]) == 0
    assert (
        outcome(
            compare_base_instruct.main,
            ["--base_dir", "r/latest_base", "--instruct_dir", "r/latest_run"],
        )
        == 0
    )
    code = outcome(
        cross_model_correlation.main,
        ["--comparison", "a=comparison_results", "b=comparison_results"],
    )
    assert code == (0 if layers > 2 else 2)


# Comparison tables and what is written

HEADER = "layer,rfc_diff,rsi_diff\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEADER + "0,1_0,1\n1,2,2\n2,3,3\n", "'1_0' is not a finite number"),
        (HEADER + "0,\u0661,1\n1,2,2\n2,3,3\n", "is not a finite number"),
        (HEADER + "0,1e308,1\n1,2,2\n2,3,3\n", "'1e308' is not a finite number"),
        (
            "layer,rfc_diff,rsi_diff,rfc_diff\n0,1,1,1\n1,2,2,2\n2,3,3,3\n",
            "column rfc_diff appears twice",
        ),
        (HEADER + "".join(f"{i},1,2\n" for i in range(1001)), "at most 1000"),
    ],
)
def test_profiles_that_cannot_be_compared(here, capsys, text, said):
    Path("detailed_comparison.csv").write_text(text, encoding="utf-8")
    refused(
        capsys,
        cross_model_correlation.main,
        ["--comparison", "a=."],
        "detailed_comparison.csv",
        said,
    )
    assert os.listdir(here) == ["detailed_comparison.csv"]


def test_tiny_differences_correlate_as_large_ones_do():
    """Squares of 1e-200 are 0, which gave r = NaN with p = 0."""
    a, b = np.random.default_rng(0).normal(size=(2, 24))
    for degree in range(3):
        found = profiles.correlate_detrended(a, b, degree)
        tiny = profiles.correlate_detrended(a * 1e-200, b * 1e-200, degree)
        assert tiny == pytest.approx(found)


def test_control_characters_are_escaped_in_tables(tmp_path):
    files.write_csv(
        tmp_path / "a.csv", [{"text": "\x1b[31m\x9b\n\u00e9", "formula": "\n=1", "odd": "\udcff"}]
    )
    assert (
        tmp_path / "a.csv"
    ).read_bytes().decode() == 'text,formula,odd\r\n"\\x1b[31m\\x9b\n\u00e9","\'\n=1",\\udcff\r\n'


def test_half_a_surrogate_pair_survives_json(tmp_path):
    files.write_json(tmp_path / "a.json", {"a": "\udcff"})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"a": "\udcff"}


def test_a_prompt_that_fails_is_recorded_and_the_rest_goes_on(tiny, here, capsys, monkeypatch):
    real, lost = attention.ids_of, []

    def refuse_one(tokenized, batch):
        lost[:] = [i for i, prompt in enumerate(tokenized) if prompt.id == "neutral_01"]
        if lost[0] in batch:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(tokenized, batch)

    monkeypatch.setattr(attention, "ids_of", refuse_one)
    assert activation_analysis.main(["--model_id", tiny, "--prompts_per_category", "2"]) == 3
    assert "failed: neutral_01: out of memory" in capsys.readouterr().out
    run = om.load_run("results_activation_analysis/latest_run")
    assert run.counts == {"self_referent": 2, "confounder": 2, "neutral": 1, "third_person": 2}
    assert run.config["status"] == "partial" and [
        entry["id"] for entry in run.config["prompts"]["failed"]
    ] == ["neutral_01"]


@pytest.mark.parametrize("documents", [False, True])
def test_when_everything_fails_the_request_was_not_wrong(
    tiny, here, capsys, monkeypatch, documents
):
    def refuse(*request):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(attention, "check_patterns", refuse)
    Path("d.jsonl").write_text('{"id": "a", "text": "Rain falls from clouds."}\n')
    what = ["--documents", "d.jsonl"] if documents else ["--prompts_per_category", "1"]
    assert activation_analysis.main(["--model_id", tiny, *what]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: all {'1 documents' if documents else '4 prompts'} failed: out")
    assert not list(here.rglob("run_*")) and not list(here.rglob("documents_*"))


def test_a_user_without_a_home(monkeypatch):
    """A container that runs as a number no user has: Path.home() raises RuntimeError, which ended a
    finished run."""

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert record.portable({"output_dir": "/data/x"}) == {"output_dir": "/data/x"}
    with pytest.raises(UserError, match="set XDG_CACHE_HOME"):
        source_module.bundled_folder()
