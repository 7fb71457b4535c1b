"""Run folders as people meet them: listed, pruned, and named by what they are where another kind is
wanted."""

import os
import shutil
from pathlib import Path

import pytest

import activation_analysis
import analyze_results
import compare_base_instruct
import cross_model_correlation
import experiment
import interventions
import output_manager as om
import prompts
import visualize_results
from rolecircuits.inputs import folders
from rolecircuits.runs import files as run_files
from rolecircuits.runs import listing
from synthetic import make_run, save_run

WIDTH = 80


def publish(root, prefix="run", link=None, marker="attention.npz", **facts):
    """A run folder with a config as a script writes it; its numbers are nothing."""
    config = {
        "schema_version": 2,
        "script": "activation_analysis.py",
        "status": "complete",
        "created": "2026-01-01T12:00:00+0000",
        "arguments": {"prompts": None},
        "model": {"id": "someone/model"},
        "prompts": {"format": "raw", "n": 12},
    }
    with om.create_run(root, link, prefix) as new:
        (new.path / marker).write_bytes(b"x" * 1000)
        run_files.write_json(new.path / "experiment_config.json", config | facts)
    return new.final


def dated(root, name, day, **more):
    """A run that was made on a day of January 2026, under a name."""
    made = publish(root, created=f"2026-01-{day:02}T12:00:00+0000", **more)
    return Path(shutil.move(made, Path(root, name)))


def command(*words):
    try:
        return om.main([str(word) for word in words])
    except SystemExit as stop:
        return stop.code


def listed(capsys, folder):
    assert command("list", folder) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if not line.startswith(str(folder))]
    assert max(map(len, lines)) <= WIDTH
    return printed


def test_runs_of_every_kind_are_listed_newest_last_with_their_links(tmp_path, capsys):
    root = tmp_path / "r"
    dated(root, "run_20260109_000000", 9)
    dated(root, "run_20260103_000000", 3, arguments={"prompts": "a/own.csv"})
    publish(root, "intervention", "latest_intervention", "effects.json", interventions=[1, 2, 3])
    publish(root, "sweep", None, "head_effects.npz", sweep={"of": "heads", "method": "mean"})
    of_documents = {"documents": {"n": 4}, "arguments": {"documents": "x/c.jsonl"}}
    publish(root, "documents", None, "documents.npz", **of_documents)
    publish(root, "generation", None, "generation_results.json", status="partial")
    publish(root / "below", link="latest_run", model={"id": "long/" + "x" * 100})
    (root / "below" / f"latest_{'y' * 30}").symlink_to(os.readlink(root / "below/latest_run"))
    (root / "latest_base").write_text("run_20260103_000000\n")  # a file system without symlinks
    printed = listed(capsys, root)
    places = [printed.index(name) for name in ("run_20260103", "run_20260109", f"{root}/below/")]
    assert places == sorted(places)
    lines = [line.strip() for line in printed.splitlines()]
    pairs = zip(lines, lines[1:], strict=False)
    entry = {line.split()[0]: (line, after) for line, after in pairs}
    first, facts = entry["run_20260103_000000"]
    assert first.endswith("latest_base") and "2026-01-03 " in first and " 1.6 kB " in first
    assert facts == "someone/model, own.csv, raw, 12 prompts"
    kinds = {line.split("_")[0]: told for line, told in entry.values() if "_20" in line}
    assert kinds["intervention"] == "someone/model, original, raw, 12 prompts, 3 edits"
    assert kinds["sweep"].endswith("12 prompts, every head, mean")
    assert kinds["documents"] == "someone/model, c.jsonl, 4 documents"
    assert kinds["generation"].endswith("some failed")
    assert "latest_intervention" in printed and "latest_run" in printed
    assert lines[-1].startswith("7 runs, ") and "damaged" not in printed


HARMS = {
    "manifest": (lambda run: (run / "manifest.json").unlink(), "incomplete: no manifest.json"),
    "not json": (
        lambda run: (run / "manifest.json").write_text("{"),
        "damaged: manifest.json: Expecting",
    ),
    "no entries": (lambda run: (run / "manifest.json").write_text("[]"), "does not list"),
    "missing": (lambda run: (run / "attention.npz").unlink(), "attention.npz is missing"),
    "cut": (lambda run: (run / "attention.npz").write_bytes(b"x"), "has another size"),
    "config": (
        lambda run: (run / "experiment_config.json").write_bytes(b"\xff"),
        "damaged: experiment_config.json",
    ),
    "fields": (
        lambda run: (run / "experiment_config.json").write_text('{"created": 3}'),
        "experiment_config.json is not as",
    ),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_run_is_named_as_such_and_never_removed(tmp_path, capsys, harm):
    run = dated(tmp_path, "run_20260102_000000", 2)
    older = dated(tmp_path, "run_20260101_000000", 1)
    change, said = HARMS[harm]
    change(run)
    printed = listed(capsys, tmp_path)
    assert said in " ".join(printed.split()) and "1 of them unfinished or damaged" in printed
    assert command("prune", "--keep", 1, tmp_path, "--yes") == 0
    assert run.is_dir() and said in " ".join(capsys.readouterr().out.split())
    assert older.is_dir()  # the damaged one is not counted as the newest


def test_only_the_newest_of_each_kind_in_each_folder_stay(tmp_path, capsys):
    for folder in (tmp_path, tmp_path / "below"):
        for day in (1, 2, 3):
            dated(folder, f"run_2026010{day}_000000", 4 - day)  # names and dates disagree
        dated(folder, "sweep_20260101_000000", 1, marker="head_effects.npz", prefix="sweep")
    assert command("prune", "--keep", 1, tmp_path) == 0
    printed = capsys.readouterr().out
    assert "4 folders stay, 4 to remove" in printed and "nothing was removed" in printed
    assert len(list(tmp_path.rglob("run_*"))) == 6
    assert command("prune", "--keep", 1, tmp_path, "--yes") == 0
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*_000000"))
    names = ["run_20260101_000000", "sweep_20260101_000000"]
    assert left == [f"below/{name}" for name in names] + names
    assert not list(tmp_path.rglob(".tmp_*"))
    assert capsys.readouterr().out.splitlines()[-1].startswith("removed: ")


def test_what_a_link_names_and_what_a_kept_repetition_repeats_stay(tmp_path):
    days = {day: dated(tmp_path, f"run_2026010{day}_000000", day) for day in (1, 2, 3, 4, 5, 6)}
    (tmp_path / "latest_run").symlink_to(days[1].name)
    (tmp_path / "latest_base").write_text(f"{days[2].name}\n")
    (tmp_path / "paper").symlink_to(days[3])  # absolute, and of the user's own
    for name, day, of in (("07", 7, days[4].name), ("08", 8, "repeat_20260107_000000")):
        run = dated(tmp_path, f"repeat_202601{name}_000000", day, prefix="repeat")
        run_files.write_json(run / "repeat.json", {"repeat_of": of})
        om.write_manifest(run)
    assert command("prune", "--keep", 1, tmp_path, "--yes") == 0
    left = {path.name for path in tmp_path.iterdir() if path.is_dir() and not path.is_symlink()}
    expected = {days[day].name for day in (1, 2, 3, 4, 6)}
    assert left == expected | {"repeat_20260107_000000", "repeat_20260108_000000"}


def test_what_is_not_wholly_ours_stays(tmp_path, capsys):
    outside = publish(tmp_path / "outside")
    root = tmp_path / "r"
    runs = [dated(root, f"run_2026010{day}_000000", day) for day in (1, 2, 3, 4, 5)]
    (runs[0] / "notes.txt").touch()
    (runs[1] / "out").symlink_to(outside)
    renamed = Path(shutil.move(runs[2], root / "best"))
    (root / "elsewhere").symlink_to(outside.parent)
    (root / "photos_20260101_000000").mkdir()
    (root / "plain").mkdir()
    (root / "plain" / "thesis.txt").touch()
    with om.create_run(root, "latest_run") as new:
        (new.path / "half").touch()
        assert command("prune", "--keep", 0, root, "--yes") == 0
        printed = capsys.readouterr().out
        assert new.path.is_dir() and "being written, or left by a killed process" in printed
    gone = [path for path in runs if not path.exists()]
    assert gone == [runs[2], runs[3], runs[4]] and renamed.is_dir() and outside.is_dir()
    assert (root / "plain" / "thesis.txt").exists() and (root / "photos_20260101_000000").exists()
    for why in ("notes.txt is not in its manifest", "out is not in", "given another name"):
        assert why in printed


def test_a_link_that_was_moved_while_it_was_asked_protects_its_run(tmp_path, capsys):
    run = dated(tmp_path, "run_20260101_000000", 1)
    _, removed = listing.choose_removed(listing.find_runs(tmp_path), 0)
    (tmp_path / "latest_run").symlink_to(run.name)
    listing.remove_runs(removed)
    assert run.is_dir() and "a link names it now" in capsys.readouterr().out


@pytest.mark.parametrize(("answer", "stays"), [("yes", False), ("y", True), (None, True)])
def test_on_a_terminal_only_a_typed_yes_removes(tmp_path, monkeypatch, answer, stays):
    run = dated(tmp_path, "run_20260101_000000", 1)

    def typed(question):
        if answer is None:
            raise EOFError
        return answer

    monkeypatch.setattr("builtins.input", typed)
    for stream in ("stdin", "stdout"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)
    assert command("prune", "--keep", 0, tmp_path) == 0
    assert run.is_dir() == stays


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "required: command"),
        (["lst"], "choose from"),
        (["prune"], "prune needs --keep N"),
        (["prune", "--keep", "-1"], "keep"),
        (["prune", "--keep", "two"], "is not a whole number from 0"),
        (["list", "--keep", "2"], "list removes nothing"),
        (["list", "none"], "no such folder"),
        (["list", "run/manifest.json"], "is a file"),
        (["prune", "--keep", "1", "run"], "is a run of activation_analysis.py; name the folder"),
    ],
)
def test_wrong_requests_are_one_line(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    shutil.move(publish(tmp_path), tmp_path / "run")
    assert command(*words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """{kind: a folder of it}, most of them as the scripts write them; also folders of folders."""
    root = tmp_path_factory.mktemp("kinds")
    run = save_run(make_run(n_layers=3, n_heads=2, per_category=2), root / "results")
    pair = ["--base_dir", str(run), "--instruct_dir", str(run)]
    assert analyze_results.main(["--input_dir", str(run), "--output_dir", f"{root}/tables/x"]) == 0
    assert visualize_results.main(["--input_dir", str(run), "--output_dir", f"{root}/fig/x"]) == 0
    assert compare_base_instruct.main([*pair, "--output_dir", f"{root}/compared"]) == 0
    named = ["--comparison", f"a={root}/compared", f"b={root}/compared"]
    assert cross_model_correlation.main([*named, "--output_dir", f"{root}/correlated"]) == 0
    made = {folders.RUN: run, folders.ANALYSIS: root / "tables/x", folders.FIGURES: root / "fig/x"}
    made |= {folders.COMPARISON: root / "compared", folders.CORRELATION: root / "correlated"}
    for kind in (folders.INTERVENTION, folders.SWEEP, folders.DOCUMENTS, folders.GENERATION):
        made[kind] = publish(root / kind.marker, "x", "latest_x", kind.marker)
    return made


READERS = {
    "visualize": (visualize_results, ["--input_dir", "{}"], [folders.RUN, folders.DOCUMENTS]),
    "visualize edits": (
        visualize_results,
        ["--output_type", "intervention", "--input_dir", "{}"],
        [folders.RUN, folders.INTERVENTION],
    ),
    "analyze": (analyze_results, ["--input_dir", "{}"], [folders.RUN]),
    "base": (compare_base_instruct, ["--base_dir", "{}", "--instruct_dir", "{}"], [folders.RUN]),
    "instruct": (
        compare_base_instruct,
        ["--base_dir", "{run}", "--instruct_dir", "{}"],
        [folders.RUN],
    ),
    "repeat": (activation_analysis, ["--repeat", "{}"], [folders.RUN]),
    "audit": (prompts, ["--audit", "{}"], [folders.RUN]),
    "correlate": (cross_model_correlation, ["--comparison", "a={}"], [folders.COMPARISON]),
    "plan": (interventions, ["--config_file", "{}"], []),
    "plan of answers": (experiment, ["--config_file", "{}"], []),
    "prompts": (activation_analysis, ["--prompts", "{}"], []),
    "documents": (activation_analysis, ["--documents", "{}"], []),
}


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_says_what_a_folder_of_another_kind_is(
    kinds, tmp_path, monkeypatch, capsys, reader
):
    monkeypatch.chdir(tmp_path)
    script, words, reads = READERS[reader]
    for kind, folder in kinds.items():
        if kind in reads:
            continue
        flags = [word.replace("{run}", str(kinds[folders.RUN])) for word in words]
        assert script.main([flag.replace("{}", str(folder)) for flag in flags]) == 2, kind
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and str(folder) in error, error
        assert kind.what in error and kind.read in error and "not a" in error, error
        assert "damaged" not in error and "run activation_analysis.py first" not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (folders.RUN, "latest_run for one (a run of activation_analysis.py)"),
        (folders.ANALYSIS, "x for one (an analysis by analyze_results.py)"),
        (folders.FIGURES, "x for one (a folder of figures)"),
    ],
)
def test_a_folder_of_folders_says_which_to_name(kinds, capsys, kind, said):
    place = kinds[kind].parent
    assert analyze_results.main(["--input_dir", str(place)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_run_that_lost_its_arrays_is_damaged_and_an_empty_folder_no_run(kinds, tmp_path, capsys):
    harmed = shutil.copytree(kinds[folders.RUN], tmp_path / "run")
    (harmed / "attention.npz").unlink()
    assert analyze_results.main(["--input_dir", str(harmed)]) == 2
    assert "attention.npz: missing; the run is damaged" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert analyze_results.main(["--input_dir", str(tmp_path / "empty")]) == 2
    assert "not a complete run" in capsys.readouterr().err


def test_the_tables_of_a_run_go_to_a_folder_of_its_name(kinds, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(kinds[folders.RUN].parent, "r", symlinks=True)
    edits = publish("r", "intervention", "latest_intervention", "effects.json")
    shutil.copytree(kinds[folders.RUN], edits / "baseline")
    for run in ("latest_run", "latest_intervention/baseline"):
        assert analyze_results.main(["--input_dir", f"r/{run}"]) == 0
    tables = {os.path.dirname(path) for path in Path("analysis_results").rglob("design.json")}
    names = (kinds[folders.RUN].name, f"{edits.name}/baseline")
    assert tables == {f"analysis_results/{name}" for name in names}


def test_links_and_repetitions_in_other_folders_protect_a_run(tmp_path, capsys):
    below = [dated(tmp_path / "sub", f"run_2026010{day}_000000", day) for day in (1, 2, 3, 4)]
    (tmp_path / "chosen").symlink_to(f"sub/{below[0].name}")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("nowhere")
    repeat = dated(tmp_path, "repeat_20260105_000000", 5, prefix="repeat")
    run_files.write_json(repeat / "repeat.json", {"repeat_of": below[1].name})
    om.write_manifest(repeat)
    assert command("prune", "--keep", 1, tmp_path, "--yes") == 0
    assert [path.is_dir() for path in below] == [True, True, False, True]
    assert f"{below[0].name}: chosen" in capsys.readouterr().out.replace("\n       ", "")


@pytest.mark.parametrize("told", ['{"repeat_of": 5}', '{"repeat_of": "a/b"}', "[]", "{bad"])
def test_a_repetition_that_says_nonsense_stops_nothing(tmp_path, capsys, told):
    runs = [dated(tmp_path, f"run_2026010{day}_000000", day) for day in (1, 2)]
    repeat = dated(tmp_path, "repeat_20260103_000000", 3, prefix="repeat")
    (repeat / "repeat.json").write_text(told)
    om.write_manifest(repeat)
    assert command("prune", "--keep", 1, tmp_path, "--yes") == 0
    assert [path.exists() for path in (*runs, repeat)] == [False, True, True]
    printed = " ".join(capsys.readouterr().out.split())
    assert ("damaged: repeat.json is not JSON" in printed) == (told == "{bad")
