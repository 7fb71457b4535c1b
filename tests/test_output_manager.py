"""Run folders are whole or absent, and a reader believes nothing that it has not checked."""

import csv
import errno
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import filelock
import numpy as np
import pytest

import output_manager as om
from conftest import PROJECT
from rolecircuits.inputs import arguments, prompt_sets
from rolecircuits.inputs.errors import RunFailed, UserError
from rolecircuits.runs import arrays as run_arrays
from rolecircuits.runs import files as run_files
from rolecircuits.runs import npz, publish, record
from synthetic import make_run, save_run

CRASH = """
import os, signal, sys
import output_manager as om
with om.create_run(sys.argv[1], "latest_run") as new:
    (new.path / "half.txt").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""
SIGTERM = """
import os, signal, sys
import output_manager as om
from rolecircuits.inputs import parser as cli
def run(args):
    with om.create_run(sys.argv[1], "latest_run") as new:
        (new.path / "half.txt").write_text("x")
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
sys.exit(cli.run_script(cli.Parser().parse_args, run, []))
"""
SAME_SECOND = """
import sys, time
import output_manager as om
time.strftime = lambda form: "20260101_120000"
for _ in range(5):
    with om.create_run(sys.argv[1], "latest_run") as new:
        (new.path / "data.txt").write_text("x")
"""
WITHOUT_FCNTL = """
import sys
sys.modules["fcntl"] = None
import output_manager as om
from rolecircuits.capture import instrument
for _ in range(2):
    with om.create_run(sys.argv[1], "latest_run") as new:
        (new.path / "data.txt").write_text("x")
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A complete run folder; tests that harm it work on a copy."""
    return save_run(
        make_run(n_layers=2, n_heads=2, per_category=2), tmp_path_factory.mktemp("results")
    )


@pytest.fixture
def harmed(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "run"))


def publish_one(root, content="x", latest="latest_run"):
    with om.create_run(root, latest) as new:
        (new.path / "data.txt").write_text(content)
    return new.final


def temporary(root):
    return [path.name for path in Path(root).iterdir() if path.name.startswith(run_files.TEMPORARY)]


def forge(folder, name, content):
    """Replace a file of a run and make the manifest agree, as in a run that was tampered with."""
    (folder / name).write_bytes(content)
    om.write_manifest(folder)


def forge_arrays(folder, **changed):
    with np.load(folder / "attention.npz") as archive:
        arrays = {name: archive[name] for name in run_arrays.ARRAYS} | changed
    buffer = io.BytesIO()
    np.savez(buffer, **{name: array for name, array in arrays.items() if array is not None})
    forge(folder, "attention.npz", buffer.getvalue())


def refused(folder, *said):
    with pytest.raises(UserError) as error:
        om.load_run(folder)
    message = str(error.value)
    assert "\n" not in message and str(folder) in message
    for part in said:
        assert part in message
    return message


@pytest.mark.parametrize("prompt_set", ["original", "crossed"])
def test_a_run_comes_back_as_it_was_written(tmp_path, prompt_set):
    prompts = prompt_sets.cut_prompts(prompt_sets.built_in_prompts(prompt_set), 3)
    run = make_run(n_layers=3, n_heads=2, prompts=prompts, model_id="me/model")
    path = save_run(run, tmp_path)
    loaded = om.load_run(tmp_path / "latest_run")
    assert loaded.path == path.resolve() and loaded.label == "me/model, raw prompts"
    undefined = ("entropy", "sink") if loaded.has_slots else ("entropy", "sink", "slot_")
    for name in run_arrays.ARRAYS:
        written, read = getattr(run, name), getattr(loaded, name)
        assert read.dtype == written.dtype, name
        assert np.array_equal(read, written, equal_nan=name.startswith(undefined)), name
    assert (loaded.n_layers, loaded.n_heads, loaded.prompts) == (3, 2, run.prompts)
    assert loaded.counts == dict.fromkeys(dict.fromkeys(p.category for p in prompts), 3)
    assert loaded.crossed == loaded.has_slots == (prompt_set == "crossed")


def test_publishing_swaps_the_link_and_keeps_the_old_run(tmp_path):
    first, second = publish_one(tmp_path, "one"), publish_one(tmp_path, "two")
    assert first != second and (first / "data.txt").read_text() == "one"
    assert (tmp_path / "latest_run").is_symlink() and os.readlink(
        tmp_path / "latest_run"
    ) == second.name
    assert (tmp_path / "latest_run" / "data.txt").read_text() == "two"
    assert not temporary(tmp_path) and not (second / run_files.LOCK).exists()


def test_two_runs_of_one_second_get_different_names(tmp_path, monkeypatch):
    monkeypatch.setattr(publish.time, "strftime", lambda form: "20260101_120000")
    names = [publish_one(tmp_path).name for _ in range(3)]
    assert names == ["run_20260101_120000", "run_20260101_120000_2", "run_20260101_120000_3"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_interrupted_run_leaves_the_previous_one_and_no_folder(tmp_path, error):
    before = publish_one(tmp_path, "good")
    with pytest.raises(error), om.create_run(tmp_path, "latest_run") as new:
        (new.path / "data.txt").write_text("bad")
        raise error
    assert (tmp_path / "latest_run" / "data.txt").read_text() == "good"
    assert not new.path.exists() and not temporary(tmp_path)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir() and not p.is_symlink()] == [
        before.name
    ]


def test_full_disk_while_publishing_leaves_the_previous_run(tmp_path, monkeypatch):
    publish_one(tmp_path, "good")

    def fail(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(publish, "write_manifest", fail)
    with pytest.raises(OSError, match="No space left"):
        publish_one(tmp_path, "bad")
    assert (tmp_path / "latest_run" / "data.txt").read_text() == "good" and not temporary(tmp_path)


def test_kill_9_leaves_a_folder_that_no_reader_takes_and_the_next_run_removes(tmp_path):
    publish_one(tmp_path, "good")
    done = subprocess.run([sys.executable, "-c", CRASH, str(tmp_path)], cwd=PROJECT, check=False)
    assert done.returncode == -9
    (left,) = temporary(tmp_path)
    om.write_manifest(tmp_path / left)
    with pytest.raises(UserError, match="not a complete run"):
        om.resolve_run(tmp_path / left)
    assert (tmp_path / "latest_run" / "data.txt").read_text() == "good"
    publish_one(tmp_path)
    assert not temporary(tmp_path)


def test_sigterm_removes_the_folder_and_exits_130(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SIGTERM, str(tmp_path)], cwd=PROJECT, capture_output=True, text=True
    )
    assert (
        done.returncode == 130
        and done.stderr.startswith("interrupted")
        and done.stderr.count("\n") == 1
    )
    assert not temporary(tmp_path) and not (tmp_path / "latest_run").is_symlink()


def test_a_live_run_is_never_taken_for_stale(tmp_path):
    with om.create_run(tmp_path, "latest_run") as slow:
        (slow.path / "data.txt").write_text("slow")
        quick = publish_one(tmp_path, "quick")
        assert (slow.path / "data.txt").exists()
    assert (tmp_path / "latest_run" / "data.txt").read_text() == "slow"
    assert (quick / "data.txt").read_text() == "quick" and slow.final != quick


def test_a_run_is_still_live_while_its_manifest_is_written(tmp_path, monkeypatch):
    write = om.write_manifest

    def write_beside_another_run(folder):
        write(folder)
        run_files.remove_stale_folders(tmp_path)

    monkeypatch.setattr(publish, "write_manifest", write_beside_another_run)
    assert (publish_one(tmp_path, "whole") / "data.txt").read_text() == "whole"


def test_runs_of_one_second_by_many_processes_all_get_a_name(tmp_path):
    children = [
        subprocess.Popen([sys.executable, "-c", SAME_SECOND, tmp_path], cwd=PROJECT)
        for _ in range(4)
    ]
    assert [child.wait() for child in children] == [0] * 4
    names = {path.name for path in tmp_path.glob("run_*")}
    assert names == {"run_20260101_120000"} | {
        f"run_20260101_120000_{n}" for n in range(2, 4 * 5 + 1)
    }
    assert os.readlink(tmp_path / "latest_run") in names and not temporary(tmp_path)


def test_a_folder_that_is_taken_for_stale_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    """Another process may look for stale folders between the making of a folder and its lock."""
    lock, met = filelock.lock_descriptor, []

    def lock_late(descriptor, blocking):
        if not met:
            met.extend(temporary(tmp_path))
            shutil.rmtree(tmp_path / met[0])
        return lock(descriptor, blocking=blocking)

    monkeypatch.setattr(filelock, "lock_descriptor", lock_late)
    assert (publish_one(tmp_path, "whole") / "data.txt").read_text() == "whole"
    assert met and not temporary(tmp_path)


def no_locks(*request, **options):
    raise OSError(errno.ENOLCK, "No locks available")


def no_symlinks(source, target, *options):
    raise OSError(errno.EOPNOTSUPP, "Operation not supported", str(target))


def test_a_folder_without_locks_is_said_before_the_work_and_loses_nothing(
    tmp_path, monkeypatch, capsys
):
    locks = filelock.lock_descriptor
    monkeypatch.setattr(filelock, "lock_descriptor", no_locks)
    om.say_limits(tmp_path / "not" / "yet")
    assert capsys.readouterr().out.startswith(f"note: {tmp_path}: has no file locks; ")
    assert os.listdir(tmp_path) == []
    with om.create_run(tmp_path, "latest_run") as slow:
        (slow.path / "data.txt").write_text("slow")
        quick = publish_one(tmp_path, "quick")
        monkeypatch.setattr(filelock, "lock_descriptor", locks)
        publish_one(tmp_path, "from a machine that has locks")
        monkeypatch.setattr(filelock, "lock_descriptor", no_locks)
    assert (slow.final / "data.txt").read_text() == "slow" and quick.is_dir()
    assert not temporary(tmp_path)


def test_a_system_without_fcntl(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_FCNTL, tmp_path], cwd=PROJECT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "latest_run" / "data.txt").read_text() == "x" and not temporary(tmp_path)


def test_a_link_is_a_text_file_where_no_symlink_can_be_made(saved, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "symlink", no_symlinks)
    om.say_limits(tmp_path)
    assert capsys.readouterr().out.startswith(f"note: {tmp_path}: has no symlinks; ")
    run = make_run(n_layers=2, n_heads=2, per_category=2)
    first, second = save_run(run, tmp_path), save_run(run, tmp_path)
    link = tmp_path / "latest_run"
    assert link.read_text() == f"{second.name}\n" and not link.is_symlink() and first != second
    assert om.load_run(link).path == second.resolve() and not temporary(tmp_path)
    assert om.resolve_run(link) == second.resolve()
    (second / "baseline").mkdir()
    om.write_manifest(second / "baseline")
    assert om.resolve_run(link / "baseline") == (second / "baseline").resolve()
    assert arguments.check_output_dir(tmp_path, link="latest_run") == tmp_path
    monkeypatch.undo()
    third = save_run(run, tmp_path)  # and where one can be made again
    assert os.readlink(link) == third.name


@pytest.mark.parametrize(
    "text", ["../elsewhere", "/etc", "", "run_20260101_120000/../..", "x" * 99]
)
def test_a_text_file_that_names_no_run_is_no_link(tmp_path, text):
    (tmp_path / "latest_run").write_text(text)
    refused(tmp_path / "latest_run", "is a file")
    with pytest.raises(UserError, match="is not a symlink"):
        publish_one(tmp_path)


def test_a_text_link_to_a_run_that_is_gone(tmp_path):
    (tmp_path / "latest_run").write_text("run_20260101_120000\n")
    refused(tmp_path / "latest_run", "points at a folder that is gone")


def test_a_link_that_cannot_be_made_costs_no_run(tmp_path, monkeypatch):
    def fail(*request):
        raise OSError(28, "No space left on device")

    before = publish_one(tmp_path, "before")
    monkeypatch.setattr(publish, "point_link", fail)
    with pytest.raises(
        RunFailed, match="complete, but latest_run cannot be linked to it: No space"
    ):
        publish_one(tmp_path, "good")
    (run,) = set(tmp_path.glob("run_*")) - {before}
    assert (run / "data.txt").read_text() == "good" and om.resolve_run(run) == run.resolve()
    assert os.readlink(tmp_path / "latest_run") == before.name and not temporary(tmp_path)


def test_an_interrupt_before_the_link_publishes_nothing(tmp_path, monkeypatch):
    def interrupt(*request):
        raise KeyboardInterrupt

    before = publish_one(tmp_path, "before")
    monkeypatch.setattr(publish, "point_link", interrupt)
    with pytest.raises(KeyboardInterrupt):
        publish_one(tmp_path, "half")
    assert list(tmp_path.glob("run_*")) == [before] and not temporary(tmp_path)


def test_a_real_folder_in_the_links_place_is_not_overwritten(tmp_path):
    (tmp_path / "latest_run").mkdir()
    with pytest.raises(UserError, match="is not a symlink"):
        publish_one(tmp_path)
    assert (tmp_path / "latest_run").is_dir() and not temporary(tmp_path)


def test_replaced_file_keeps_the_old_content_when_it_fails(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(RuntimeError), run_files.replaced_file(path) as file:
        file.write("half")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["table.csv"]


def test_paths_that_are_no_run_are_refused(tmp_path):
    (tmp_path / "gone").symlink_to("run_deleted")
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    cases = {
        "none": "no such folder",
        "gone": "points at a folder that is gone",
        "file": "is a file",
        "empty": "manifest",
    }
    for name, said in cases.items():
        refused(tmp_path / name, said)


def test_size_and_checksum_are_compared_with_the_manifest(harmed):
    path = harmed / "attention.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    refused(harmed, f"has {len(whole) - 100} bytes, its manifest says {len(whole)}")
    path.write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
    refused(harmed, "attention.npz: its SHA-256 is not the manifest's")


@pytest.mark.parametrize("name", ["experiment_config.json", "prompts.jsonl", "attention.npz"])
def test_missing_file_is_named(harmed, name):
    (harmed / name).unlink()
    refused(harmed, f"{name}: missing")


@pytest.mark.parametrize("files", [[], None, "x", {"attention.npz": 7}])
def test_a_manifest_of_the_wrong_form_is_refused(harmed, files):
    run_files.write_json(
        harmed / "manifest.json", {"schema_version": record.SCHEMA_VERSION, "files": files}
    )
    refused(harmed, "missing")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff", b"[]", b'{"schema_version": 99}', b'{"files": {}}', b"[" * 100_000],
)
def test_a_damaged_or_foreign_manifest_is_refused(harmed, content):
    (harmed / "manifest.json").write_bytes(content)
    refused(harmed)


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b"{}", b'{"model": {"id": 3}, "prompts": {"format": "raw"}}']
)
def test_a_damaged_config_is_refused(harmed, content):
    forge(harmed, "experiment_config.json", content)
    refused(harmed, "experiment_config.json", "damaged")


def test_prompts_that_are_not_those_of_the_arrays_are_refused(harmed):
    lines = (harmed / "prompts.jsonl").read_bytes().splitlines(keepends=True)
    forge(harmed, "prompts.jsonl", b"".join(lines[::-1]))
    refused(harmed, "prompts.jsonl", "not those of attention.npz")
    row = json.loads(lines[0])
    for change in ({"text": None}, {"category": "neutral"}):
        forge(
            harmed,
            "prompts.jsonl",
            b"\n".join([json.dumps(row | change).encode(), *lines[1:]]).replace(b"\n\n", b"\n"),
        )
        refused(harmed, "prompts.jsonl", "category or text of self_referent_00")


def test_truncated_and_foreign_archives_are_refused(harmed):
    whole = (harmed / "attention.npz").read_bytes()
    for content in (
        whole[: len(whole) // 2],
        b"",
        b"not a zip",
        whole[:200] + bytes(200) + whole[400:],
    ):
        forge(harmed, "attention.npz", content)
        refused(harmed, "attention.npz")


class Evil:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_object_arrays_are_never_unpickled(harmed, tmp_path):
    trap = tmp_path / "executed"
    pickle.loads(pickle.dumps(Evil(trap))).close()  # noqa: S301 (proves that the trap works)
    assert trap.exists()
    trap.unlink()
    array = np.array([Evil(trap)], dtype=object)
    forge_arrays(harmed, extra=array)
    refused(harmed, "extra.npy is an object array")
    forge_arrays(harmed, entropy=array)
    refused(harmed, "entropy.npy is an object array", "never unpickled")
    assert not trap.exists()
    with pytest.raises(TypeError, match="object array"):
        npz.write_npz(tmp_path / "new.npz", {"a": array})


def test_a_plain_pickle_inside_the_archive_is_not_read(harmed, tmp_path):
    trap = tmp_path / "executed"
    with zipfile.ZipFile(harmed / "attention.npz", "w") as archive:
        archive.writestr("entropy.npy", pickle.dumps(Evil(trap)))
    om.write_manifest(harmed)
    refused(harmed, "attention.npz")
    assert not trap.exists()


def test_a_forged_header_is_refused_before_memory_is_taken(harmed):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (2**40,)}
    )
    with zipfile.ZipFile(harmed / "attention.npz", "w") as archive:
        archive.writestr("entropy.npy", header.getvalue() + bytes(64))
    om.write_manifest(harmed)
    refused(harmed, "entropy.npy", f"declares {2**42} bytes")


def test_a_member_that_is_no_array_is_refused(harmed):
    with zipfile.ZipFile(harmed / "attention.npz", "a") as archive:
        archive.writestr("run.py", "print()")
    om.write_manifest(harmed)
    refused(harmed, "run.py", "not an array")


def spoil(name, place, value):
    def change(run):
        array = getattr(run, name).copy()
        array[place] = value
        return {name: array}

    return change


BAD_ARRAYS = {
    "missing": (lambda run: {"sink_mass": None}, "array sink_mass is missing"),
    "three axes": (lambda run: {"entropy": run.entropy[0]}, "entropy has 3 axes, expected 4"),
    "other layers": (
        lambda run: {"sink_mass": run.sink_mass[:, :1]},
        "sink_mass is float32 (8, 1, 2,",
    ),
    "other prompts": (
        lambda run: {"n_tokens": run.n_tokens[:-1]},
        "n_tokens is int64 (7,), expected prompt = (8,)",
    ),
    "wrong kind": (lambda run: {"pair_id": run.pair_id.astype(float)}, "pair_id is float64"),
    "no prompts": (
        lambda run: {
            n: getattr(run, n)[:0]
            for n, (_, axes) in run_arrays.ARRAYS.items()
            if axes[0] == "prompt"
        },
        "holds no prompts",
    ),
    "category": (spoil("category", 0, "a/b"), "category 'a/b': a name begins with a letter"),
    "category all": (spoil("category", 0, "all"), "category 'all': a name begins"),
    "category empty": (spoil("category", 0, ""), "category '': a name begins"),
    "NaN entropy": (spoil("entropy", (0, 0, 0, 0), np.nan), "entropy is NaN"),
    "infinite sink": (spoil("sink_mass", (0, 0, 0, 0), np.inf), "sink_mass is NaN or infinite"),
    "NaN mass": (spoil("first_mass", (0, 0, 0), np.nan), "first_mass is NaN"),
    "probability 1.1": (
        spoil("edge_mass", (0, 0, 0, 0), 1.1),
        "edge_mass holds a probability outside",
    ),
    "probability -0.1": (
        spoil("sink_mass", (0, 0, 0, 0), -0.1),
        "sink_mass holds a probability outside",
    ),
    "negative entropy": (spoil("entropy", (0, 0, 0, 1), -0.1), "entropy is outside 0 to ln"),
    "entropy above ln": (spoil("entropy", (0, 0, 0, 1), 0.8), "entropy is outside 0 to ln"),
    "sinkfree above ln": (
        spoil("entropy_sinkfree", (0, 0, 0, 2), 1.5),
        "entropy_sinkfree is outside",
    ),
    "span": (spoil("span", (0, 0), 99), "span or n_tokens of prompt 0"),
    "n_tokens": (spoil("n_tokens", 1, 99), "span or n_tokens of prompt 1"),
    "visible": (spoil("visible_keys", (0, 0), 2), "visible_keys is outside"),
    "added array missing": (lambda run: {"final_row": None}, "array final_row is missing"),
    "other segments": (
        lambda run: {"segment_mass": run.segment_mass[..., :5]},
        "segment_mass is float32 (8, 2, 2, 5), expected",
    ),
    "other keys": (
        lambda run: {"final_row": run.final_row[..., :-1]},
        "final_row is float16 (8, 2, 2,",
    ),
    "slot beyond": (spoil("slot", 0, (1, 99)), "a slot lies outside its prompt"),
    "slot backwards": (spoil("slot", 0, (3, 2)), "a slot lies outside its prompt"),
    "half a slot": (spoil("slot", 0, (-1, 2)), "a slot lies outside its prompt"),
    "NaN segment": (spoil("segment_mass", (0, 0, 0, 0), np.nan), "segment_mass is NaN"),
    "NaN row": (spoil("final_row", (0, 0, 0, 0), np.nan), "final_row is NaN"),
    "slot mass": (spoil("slot_mass", (0, 0, 0), 1.1), "slot_mass holds a probability outside"),
    "uniform mass": (
        spoil("segment_uniform", (0, 0, 0), -0.1),
        "segment_uniform holds a probability outside",
    ),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_arrays_that_cannot_be_are_refused(harmed, name):
    change, said = BAD_ARRAYS[name]
    forge_arrays(harmed, **change(om.load_run(harmed)))
    refused(harmed, "attention.npz", said)


def test_a_category_of_any_name_is_read_if_the_prompts_agree(harmed):
    before = om.load_run(harmed)
    names = np.where(before.category == "neutral", "selfish", before.category)
    forge_arrays(harmed, category=names)
    said = refused(harmed, "prompts.jsonl", "category or text of neutral_00 is wrong or missing")
    assert "the run is damaged" in said
    lines = [row | {"category": name} for row, name in zip(before.prompts, names, strict=True)]
    lines = "".join(json.dumps(line | {"category": str(line["category"])}) + "\n" for line in lines)
    forge(harmed, "prompts.jsonl", lines.encode())
    expected = {"self_referent": 2, "confounder": 2, "third_person": 2, "selfish": 2}
    assert om.load_run(harmed).counts == expected


def test_a_run_of_schema_1_is_read_as_ever(harmed):
    whole = om.load_run(harmed)
    forge_arrays(harmed, **dict.fromkeys(run_arrays.ADDED))
    refused(harmed, "attention.npz", "array frame is missing")
    manifest = json.loads((harmed / "manifest.json").read_text("utf-8"))
    run_files.write_json(harmed / "manifest.json", manifest | {"schema_version": 1})
    old = om.load_run(harmed)
    for name in set(run_arrays.ARRAYS) - set(run_arrays.ADDED):
        undefined = name.startswith(("entropy", "sink"))
        found = getattr(old, name), getattr(whole, name)
        assert np.array_equal(*found, equal_nan=undefined), name
    assert old.frame.tolist() == [row["text"].split()[0].lower() for row in whole.prompts]
    assert (old.slot == -1).all() and not any(old.filler)
    assert old.slot_mass is old.segment_mass is old.final_row is None
    assert not (old.crossed or old.has_slots)
    for version in (0, 3, True, "1", 1.0):
        run_files.write_json(harmed / "manifest.json", manifest | {"schema_version": version})
        refused(harmed, f"schema version {version}; this version reads 1 and 2")


def test_json_has_no_nan_and_takes_numpy(tmp_path):
    path = tmp_path / "a.json"
    value = {
        "a": np.float32(np.nan),
        "b": [np.inf, np.int64(3)],
        "c": np.array([1.5, np.nan]),
        "d": Path("x"),
        4: "é",
    }
    run_files.write_json(path, value)
    assert json.loads(path.read_text("utf-8")) == {
        "a": None,
        "b": [None, 3],
        "c": [1.5, None],
        "d": "x",
        "4": "é",
    }
    assert "NaN" not in path.read_text("utf-8")


def test_json_stores_texts_as_they_are(tmp_path, monkeypatch):
    """An answer may name the home folder; only `record.portable` rewrites, and it gets paths."""
    monkeypatch.setattr(Path, "home", lambda: Path("/home/zoe"))
    value = {"text": "It lies in /home/zoe/notes.", "/home/zoe": ["/home/zoe"]}
    run_files.write_json(tmp_path / "a.json", value)
    assert run_files.read_json(tmp_path / "a.json") == value


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_text_that_a_spreadsheet_would_run_is_quoted(tmp_path, text):
    run_files.write_csv(tmp_path / "a.csv", [{"text": text, "number": -1.5}])
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["text", "number"], [f"'{text}", "-1.5"]]


def test_csv_numbers_and_empty_fields(tmp_path):
    run_files.write_csv(
        tmp_path / "a.csv",
        [{"x": np.float32(0.1), "y": np.nan, "z": 1 / 3, "n": np.int64(2), "t": "a,\n$"}],
    )
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as file:
        assert list(csv.reader(file))[1] == ["0.1000000015", "", "0.3333333333", "2", "a,\n$"]


def test_portable_hides_the_home_folder_and_nothing_else(monkeypatch):
    monkeypatch.setattr(record.Path, "home", lambda: Path("/root"))
    arguments = {
        "a": "/root/models/x",
        "b": ["/rootfs/x", "/data/root/x"],
        "c": Path("/root/y"),
        "d": 3,
        "e": None,
        "f": "",
    }
    expected = {
        "a": "~/models/x",
        "b": ["/rootfs/x", "/data/root/x"],
        "c": "~/y",
        "d": 3,
        "e": None,
        "f": "",
    }
    assert record.portable(arguments) == expected


def test_prepare_folder_refuses_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="--output_dir"):
        run_files.prepare_folder(tmp_path / "file" / "figures")
    assert (run_files.prepare_folder(tmp_path / "a" / "b") / "data").is_dir()


def test_git_state_and_versions_are_recorded():
    assert set(record.git_state()) == {"commit", "dirty"}
    assert record.package_versions()["numpy"] == np.__version__


def test_only_our_own_stale_folders_are_removed(tmp_path):
    foreign = tmp_path / ".tmp_thesis", tmp_path / f".tmp_{'0' * 16}"
    for folder in foreign:  # another form of name; our form, but no lock file
        folder.mkdir()
        (folder / "text.txt").write_text("mine")
    killed = tmp_path / f".tmp_{'1' * 16}"
    killed.mkdir()
    (killed / ".lock").touch()
    (killed / "half.npz").write_text("half")
    (tmp_path / f".tmp_{'2' * 16}").mkdir()  # killed before it was locked
    om.say_limits(tmp_path / "results")
    run_files.write_json(tmp_path / "a.json", {})
    assert sorted(tmp_path.iterdir()) == sorted([*foreign, tmp_path / "a.json"])
    assert all((folder / "text.txt").read_text() == "mine" for folder in foreign)
