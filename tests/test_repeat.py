"""--repeat runs a run again from its folder alone and finds what changed.

Nothing stored names a home or holds a token, and texts are stored as they were given.
"""

import json
import os
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import activation_analysis
import analyze_results
import compare_base_instruct
import output_manager as om
import visualize_results
from deterministic import ROUNDING_TOLERANCE
from rolecircuits.capture import attention
from rolecircuits.drawing.edit_figures import PANELS
from rolecircuits.inputs.categories import Prompt
from rolecircuits.runs import arrays, record
from rolecircuits.runs import files as run_files
from rolecircuits.runs import repeat as repeat_module
from rolecircuits.runs.arrays import PROMPT_ARRAYS
from rolecircuits.runs.edit_results import EFFECT_PARTS
from synthetic import make_run, save_run
from tiny_models import save_tiny

OWN = {
    "self_referent": ["Who are you?", "What can you do?"],
    "neutral": ["What is rain?", "Why is ice cold?"],
}
TOKEN = "hf_" + "Ab1" * 11


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny("llama", tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="module")
def first(tiny, tmp_path_factory):
    """A run of own prompts in chat format, made from a folder that is then left."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "own.json").write_text(json.dumps(OWN))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        flags = [
            "--prompt_format",
            "chat",
            "--system_prompt",
            "-Be brief.",
            "--seed",
            "7",
            "--batch_size",
            "3",
            "--raw",
            "patterns",
        ]
        command = ["--model_id", tiny, "--prompts", "own.json", *flags, "--output_dir", "out"]
        assert activation_analysis.main(command) == 0
    return (folder / "out" / "latest_run").resolve()


@pytest.fixture
def copied(first, tmp_path):
    """The run alone in another place: its prompt file is not beside it."""
    return Path(shutil.copytree(first, tmp_path / "elsewhere" / first.name))


def repeat(run, *more):
    return activation_analysis.main(["--repeat", str(run), *map(str, more)])


def report(root):
    (folder,) = Path(root).glob("repeat_*")
    return json.loads((folder / "repeat.json").read_text()), folder


def forge_config(folder, **changed):
    path = folder / "experiment_config.json"
    config = json.loads(path.read_text())
    for part, values in changed.items():
        config[part] |= values
    run_files.write_json(path, config)
    om.write_manifest(folder)


def test_a_run_comes_back_from_its_folder_alone(first, copied, capsys):
    assert repeat(copied) == 0
    printed = capsys.readouterr().out
    assert "own.json: no such file; the texts in prompts.jsonl are used" in printed
    assert printed.splitlines()[-1] == "attention.npz: bit-identical"
    found, folder = report(copied.parent)
    assert found["verdict"] == repeat_module.IDENTICAL and found["repeat_of"] == copied.name
    assert (folder / "attention.npz").read_bytes() == (first / "attention.npz").read_bytes()
    again, before = om.load_run(folder), om.load_run(first)
    assert again.prompts == before.prompts
    # --capture and --raw: what was done, in place of what was left to chance
    changed = {"output_dir", "capture", "raw"}
    assert {k: v for k, v in again.config["arguments"].items() if k not in changed} == {
        k: v for k, v in before.config["arguments"].items() if k not in changed
    }
    assert again.config["capture"] == before.config["capture"]


def test_no_link_is_moved(first):
    link = first.parent / "latest_run"
    before = os.readlink(link)
    assert repeat(link, "--raw", "none") == 0
    assert os.readlink(link) == before
    found, folder = report(first.parent)
    assert found["repeat_of"] == before and not list(folder.glob("raw_*"))
    shutil.rmtree(folder)


def test_what_was_done_is_repeated_whatever_would_be_chosen_now(copied, monkeypatch, capsys):
    """--capture auto chose patterns; where it would choose streaming now, patterns are repeated."""
    before = om.load_run(copied).config
    assert before["arguments"]["capture"] == "auto" and before["capture"]["method"] == "patterns"
    monkeypatch.setattr(attention, "AUTO_TOKENS", 1)
    assert repeat(copied) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "attention.npz: bit-identical"
    _, folder = report(copied.parent)
    assert om.load_run(folder).config["capture"] == before["capture"]
    assert (folder / "raw_blocks_0_attn_pattern.npz").is_file()


def test_an_older_run_that_saved_its_patterns_unasked_saves_them_again(copied):
    """There --raw had no default: arguments say null, and the oldest say nothing of the capture."""
    path = copied / "experiment_config.json"
    config = json.loads(path.read_text())
    config["arguments"] |= {"raw": None, "output_type": "latest_base"}
    del config["capture"]["raw"]
    run_files.write_json(path, config)
    om.write_manifest(copied)
    assert repeat(copied) == 0
    _, folder = report(copied.parent)
    assert (folder / "raw_blocks_0_attn_pattern.npz").is_file()
    config = om.load_run(folder).config
    assert config["capture"]["raw"] == "patterns" and config["arguments"]["output_type"] == "base"


def test_a_batch_size_that_ran_out_of_memory_is_not_tried_again(tiny, tmp_path, monkeypatch):
    real, sizes, limit = attention.check_patterns, [], [2]

    def check(pattern, *rest):
        sizes.append(len(pattern))
        if len(pattern) > limit[0]:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        real(pattern, *rest)

    monkeypatch.setattr(attention, "check_patterns", check)
    command = ["--model_id", tiny, "--prompts_per_category", "1", "--output_dir", str(tmp_path)]
    assert activation_analysis.main(command) == 0
    assert om.load_run(tmp_path / "latest_run").config["capture"]["batch_size"] == 2
    assert max(sizes) == 4
    limit[0], sizes[:] = 4, []
    assert repeat(tmp_path / "latest_run") == 0
    assert max(sizes) == 2 and report(tmp_path)[0]["changed"] == []


def test_older_runs_that_do_not_record_their_capture_are_repeated(copied, capsys):
    path = copied / "experiment_config.json"
    config = json.loads(path.read_text())
    del config["capture"]
    run_files.write_json(path, config)
    om.write_manifest(copied)
    assert repeat(copied) == 0
    printed = capsys.readouterr().out
    assert "does not record the method of its capture: its --capture is taken" in printed
    assert "does not record the batch_size of its capture: its --batch_size is taken" in printed


def test_patterns_of_a_streamed_run_are_refused(copied, capsys):
    forge_config(copied, capture={"method": "streaming", "raw": "none"})
    assert repeat(copied, "--raw", "patterns") == 2
    assert "it was streamed, so there are no patterns" in capsys.readouterr().err


def test_other_batch_sizes_agree_within_the_recorded_tolerance(copied, capsys):
    assert repeat(copied, "--batch_size", "1") == 0
    found, _ = report(copied.parent)
    config = json.loads((copied / "experiment_config.json").read_text())
    assert found["tolerance"] == config["rounding_tolerance"] == ROUNDING_TOLERANCE["float32"]
    assert found["verdict"] in (repeat_module.IDENTICAL, repeat_module.CLOSE)
    assert "argument batch_size: was 3, is 1" in found["changed"]


def test_changed_weights_are_said_before_the_run_and_found_after_it(
    copied, tiny, tmp_path, capsys, monkeypatch
):
    changed = Path(shutil.copytree(tiny, tmp_path / "changed"))
    weights = load_file(changed / "model.safetensors")
    name = "model.layers.1.self_attn.q_proj.weight"
    weights[name] = weights[name] * 1.5
    save_file(weights, changed / "model.safetensors", {"format": "pt"})
    said = []
    capture = attention.capture_patterns

    def listen(*args, **kwargs):
        said.append(capsys.readouterr().out)
        return capture(*args, **kwargs)

    monkeypatch.setattr(attention, "capture_patterns", listen)
    assert repeat(copied, "--model_id", changed) == 1
    assert "changed: model weights: was " in said[0] and "tokenizer" not in said[0]
    found, _ = report(copied.parent)
    assert found["verdict"] == repeat_module.DIFFERENT and "model weights" in found["changed"][0]
    place = found["arrays"]["entropy"]["largest"]
    assert place["layer"] >= 1 and place["prompt"] in om.load_run(copied).prompt_id
    last = capsys.readouterr().out.splitlines()
    assert any(
        line.startswith("entropy: ") and f"at prompt {place['prompt']}, layer" in line
        for line in last
    )


def test_a_changed_prompt_file_is_said_and_the_recorded_texts_are_used(first, capsys, monkeypatch):
    monkeypatch.chdir(first.parent.parent)
    whole = Path("own.json").read_text()
    Path("own.json").write_text(whole.replace("rain", "snow"))
    try:
        assert repeat(first, "--output_dir", "again") == 0
    finally:
        Path("own.json").write_text(whole)
    assert "own.json has other prompts now" in capsys.readouterr().out
    assert report("again")[0]["verdict"] == repeat_module.IDENTICAL


def test_prompts_that_are_not_the_recorded_ones_are_refused(copied, capsys):
    path = copied / "prompts.jsonl"
    path.write_text(path.read_text().replace("rain", "snow"))
    om.write_manifest(copied)
    assert repeat(copied) == 2
    assert "not those of its config" in capsys.readouterr().err


def test_prompts_that_failed_are_run_again(copied):
    run = om.load_run(copied)
    lost = run.prompts[1]
    place = {
        "index": 1,
        "reason": "out of memory",
        **{key: lost[key] for key in repeat_module.PROMPT_FIELDS},
    }
    run.config["prompts"]["failed"], run.prompts = [place], [run.prompts[0], *run.prompts[2:]]
    assert [p.text for p in repeat_module.recorded_prompts(run)] == [
        text for texts in OWN.values() for text in texts
    ]


@pytest.mark.parametrize(
    ("changed", "more", "said"),
    [
        ({"arguments": {"trust_remote_code": True, "revision": "a" * 40}}, [], "give it again"),
        (
            {"arguments": {"model_id": "./gone"}},
            [],
            "its model was the folder ./gone, which is not here",
        ),
        (
            {"arguments": {"dtype": "float8"}},
            [],
            "experiment_config.json: error: argument --dtype: invalid choice",
        ),
        ({"capture": {"batch_size": -3}}, [], "whole number of at least 1"),
        ({}, ["--prompt_format", "raw"], "--prompt_format with --repeat"),
        ({}, ["--seed", "7"], "--seed with --repeat"),
    ],
)
def test_what_cannot_be_repeated_is_one_line(copied, changed, more, said, capsys):
    forge_config(copied, **changed)
    try:
        code = repeat(copied, *more)
    except SystemExit as error:
        code = error.code
    error = capsys.readouterr().err
    assert code == 2 and said in error and error.count("\n") == 1
    assert [path.name for path in copied.parent.iterdir()] == [copied.name]


def test_runs_of_other_scripts_and_damaged_runs_are_refused(copied, capsys):
    with open(copied / "experiment_config.json", "a") as file:
        file.write(" ")
    assert repeat(copied) == 2 and "its manifest says" in capsys.readouterr().err
    path = copied / "experiment_config.json"
    path.write_text(path.read_text().replace("activation_analysis.py", "interventions.py"))
    om.write_manifest(copied)
    assert repeat(copied) == 2 and "only its runs can be repeated" in capsys.readouterr().err


READERS = {
    "visualize": (visualize_results, ["--input_dir", "{run}"]),
    "effects": (visualize_results, ["--output_type", "intervention", "--input_dir", "{edited}"]),
    "compare": (compare_base_instruct, ["--base_dir", "{run}", "--instruct_dir", "{run}"]),
    "analyze": (analyze_results, ["--input_dir", "{run}"]),
    "repeat": (activation_analysis, ["--repeat", "{run}"]),
}


def flip(path):
    """Change a file without changing its size: one letter of a model's name."""
    path.write_text(path.read_text().replace("synthetic", "synthetiC", 1))


@pytest.mark.parametrize("name", READERS)
def test_a_changed_file_stops_every_reader_unless_no_verify_is_given(name, tmp_path, capsys):
    run = make_run(n_layers=2, n_heads=2, per_category=2)
    places = {
        "run": save_run(run, tmp_path / "results"),
        "edited": tmp_path / "results" / "latest_intervention",
    }
    with om.create_run(tmp_path / "results", "latest_intervention", "intervention") as new:
        row = {"intervention": "sh_0_0_zero_out", "role": "candidate", "category": "all", "n": 8}
        row |= {"controls": "", "pool": 2}
        row |= {f"{m}{s}": 0.5 for m in PANELS for s in EFFECT_PARTS}
        run_files.write_json(
            new.path / "effects.json", {"rows": [row, row | {"category": "neutral"}]}
        )
        run_files.write_json(
            new.path / "experiment_config.json", run.config | {"prompts": {"format": "raw", "n": 8}}
        )
    for place in places.values():
        flip(place / "experiment_config.json")
    script, words = READERS[name]
    words = [word.format(**places) for word in words]
    assert script.main([*words, "--output_dir", str(tmp_path / "out")]) == 2
    assert "experiment_config.json: its SHA-256 is not the manifest's" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    code = script.main([*words, "--output_dir", str(tmp_path / "out"), "--no_verify"])
    printed = capsys.readouterr()
    assert printed.out.startswith("note: --no_verify: the run's files are not compared")
    if name == "repeat":
        assert code == 2 and "only its runs can be repeated" in printed.err
    else:
        assert code == 0 and list((tmp_path / "out").iterdir())


def arrays_of(run):
    return {name: getattr(run, name).copy() for name in arrays.ARRAYS}


@pytest.mark.parametrize(
    ("name", "place", "change", "verdict", "where"),
    [
        (
            "entropy",
            (5, 1, 0, 2),
            9e-6,
            repeat_module.CLOSE,
            {"prompt": "confounder_02", "layer": 1, "head": 0, "query": 2},
        ),
        (
            "sink_mass",
            (0, 0, 1, 1),
            -2e-5,
            repeat_module.DIFFERENT,
            {"prompt": "self_referent_00", "head": 1, "query": 1},
        ),
        (
            "edge_mass",
            (0, 1, 1, 1),
            np.nan,
            repeat_module.DIFFERENT,
            {"layer": 1, "head": 1, "end": 1},
        ),
    ],
)
def test_verdict_names_the_place(name, place, change, verdict, where):
    run = make_run(n_layers=2, n_heads=2, per_category=3)
    assert (
        repeat_module.compare_arrays(arrays_of(run), arrays_of(run), 1e-5)["verdict"]
        == repeat_module.IDENTICAL
    )
    after = arrays_of(run)
    after[name][place] += change
    found = repeat_module.compare_arrays(arrays_of(run), after, 1e-5)
    assert found["verdict"] == found["arrays"][name]["verdict"] == verdict
    assert found["largest"]["array"] == name and where.items() <= found["largest"].items()
    assert found["arrays"][name]["n_different"] == 1
    assert {item["verdict"] for other, item in found["arrays"].items() if other != name} == {
        repeat_module.IDENTICAL
    }


def test_lost_prompts_and_changed_labels_are_different():
    run = make_run(n_layers=2, n_heads=2, per_category=3)
    fewer = {n: a[:-1] if n in PROMPT_ARRAYS else a for n, a in arrays_of(run).items()}
    found = repeat_module.compare_arrays(arrays_of(run), fewer, 1e-5)
    assert found["verdict"] == repeat_module.DIFFERENT
    assert any(
        line.startswith("entropy: float32 (12, 2, 2")
        for line in repeat_module.describe_verdict(found)
    )
    other = arrays_of(run)
    other["n_tokens"][0] += 1
    assert (
        repeat_module.compare_arrays(arrays_of(run), other, 1e-5)["arrays"]["n_tokens"]["verdict"]
        == repeat_module.DIFFERENT
    )


@pytest.mark.parametrize("flag", ["--system_prompt", "--model_id", "--output_dir", "--device_map"])
def test_tokens_in_arguments_are_refused(flag, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "plain-secret-value")
    for secret in ("plain-secret-value", TOKEN):
        assert activation_analysis.main(["--prompt_format", "chat", flag, f"x/{secret}"]) == 2
        error = capsys.readouterr().err
        assert f"{flag}: holds an access token" in error and secret not in error
    assert not list(tmp_path.iterdir())


def test_a_text_that_names_the_home_folder_comes_back_as_it_was(tiny, tmp_path, monkeypatch):
    """In another home folder too. Only paths and messages are stored with ~."""
    home, other = tmp_path / "home", tmp_path / "other"
    text, system = f"Who owns {home}/notes.txt?", f"You live in {home}."
    long = f"What is {home}/{'a b c d ' * 9}?"
    own = {"self_referent": [text, "Who are you?"], "neutral": ["What is rain?", long]}
    home.mkdir()
    (home / "own.json").write_text(json.dumps(own))
    shutil.copytree(tiny, home / "models" / "tiny")
    monkeypatch.setenv("HOME", str(home))
    real, lengths = attention.check_patterns, [0]

    def fail_the_longest(pattern, n_tokens, *rest):
        lengths.append(n_tokens.max())
        if lengths[-1] == max(lengths):  # the first batch holds all
            raise RuntimeError("can't allocate memory")
        real(pattern, n_tokens, *rest)

    monkeypatch.setattr(attention, "check_patterns", fail_the_longest)
    words = ["--model_id", str(home / "models/tiny"), "--prompts", str(home / "own.json")]
    words += ["--prompt_format", "chat", "--system_prompt", system, "--output_dir", "out"]
    monkeypatch.chdir(tmp_path)
    assert activation_analysis.main(words) == 3
    run = om.load_run("out/latest_run")
    assert [row["text"] for row in run.prompts] == [text, "Who are you?", "What is rain?"]
    assert run.config["prompts"]["system_prompt"] == system
    assert run.config["arguments"]["system_prompt"] == system
    assert [failed["text"] for failed in run.config["prompts"]["failed"]] == [long]
    assert run.config["arguments"]["model_id"] == run.config["model"]["id"] == "~/models/tiny"
    monkeypatch.setattr(attention, "check_patterns", real)
    home.rename(other)
    monkeypatch.setenv("HOME", str(other))
    assert repeat(run.path) == 1  # the prompt that failed is there now
    found, folder = report("out")
    assert found["changed"] == [] and not any("own.json" in note for note in found["notes"])
    again = om.load_run(folder)
    assert [row["text"] for row in again.prompts] == [text, "Who are you?", "What is rain?", long]


def test_a_reason_names_no_home(monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/home/zoe"))
    args = Namespace(prompt_format="raw", system_prompt=None, bos="auto")
    prompts = [Prompt("neutral_00", "neutral", -1, "What is /home/zoe?")]
    fed, lost = {"how": {"date": "2001-02-03"}, "model": {}}, [("neutral_00", "no /home/zoe/x.so")]
    described = record.describe_prompts(args, prompts, fed, lost)
    (failed,) = described["prompts"]["failed"]
    assert (failed["text"], failed["reason"]) == ("What is /home/zoe?", "no ~/x.so")
    assert described["prompts"]["n"] == 0 and described["prompts"]["date"] == "2001-02-03"


def test_no_file_of_a_run_names_the_home_or_a_token(tiny, tmp_path, monkeypatch):
    home = tmp_path / "home of Zoë"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    shutil.copytree(tiny, home / "models" / "tiny")
    (home / "own.json").write_text(json.dumps(OWN))
    (home / "plan.json").write_text(
        json.dumps(
            {
                "schema_version": 1,
                "interventions": [
                    {
                        "type": "patch",
                        "layer": 1,
                        "method": "other_model",
                        "source": str(home / "models" / "tiny"),
                    }
                ],
            }
        )
    )
    import interventions

    model = ["--model_id", str(home / "models" / "tiny"), "--prompts", str(home / "own.json")]
    out = home / "results"
    assert activation_analysis.main([*model, "--output_dir", str(out), "--raw", "full"]) == 0
    assert repeat(out / "latest_run") == 0
    plan = ["--config_file", str(home / "plan.json"), "--output_dir", str(out)]
    assert interventions.main([*model, *plan]) == 0
    config = json.loads((out / "latest_run" / "experiment_config.json").read_text())
    assert (
        config["arguments"]["prompts"] == "~/own.json" and config["model"]["id"] == "~/models/tiny"
    )
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) > 15
    for path in files:
        content = path.read_bytes()
        for secret in (str(home), home.name, TOKEN):
            assert secret.encode() not in content, path
            assert json.dumps(secret)[1:-1].encode() not in content, path
