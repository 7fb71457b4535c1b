"""Publish run folders: written aside, renamed when complete, linked. Nothing is ever pickled.

    <output_dir>/run_20260101_120000/    one folder per run, never overwritten
    <output_dir>/latest_run              link to the newest complete run, swapped in one step

A run is complete when its manifest.json exists; that holds the size and SHA-256 of every other
file and is written last. Until then the run lies in a hidden folder (.tmp_...), which no reader
accepts; the next run removes those that a killed process left. The link is a symlink, or a text
file with the run's name where the file system has no symlinks.
"""

import contextlib
import itertools
import os
import time
from dataclasses import dataclass
from pathlib import Path

from rolecircuits.inputs.arguments import check_output_dir
from rolecircuits.inputs.errors import RunFailed, printable
from rolecircuits.inputs.files import linked_name, sha256_of
from rolecircuits.runs.files import has_lock, read_json, temporary_folder, write_json
from rolecircuits.runs.record import CONFIG, SCHEMA_VERSION, git_state, portable_arguments


@dataclass
class NewRun:
    """A run being written: its files go to `path`; once it is published they are in `final`."""

    path: Path
    final: Path = None


@contextlib.contextmanager
def create_run(output_dir, latest, prefix="run"):
    """Write a run aside and publish it whole: `with create_run(...) as new: write into new.path`.

    On leaving the block the manifest is written, the folder renamed to <prefix>_<time>, and the
    link `latest` swapped (None: no link names the run). Any exception, Ctrl-C and SIGTERM included,
    removes the folder and leaves the previous `latest` as it was. A link that cannot be made is an
    error that leaves the finished run.
    """
    root = check_output_dir(output_dir, link=latest)
    root.mkdir(parents=True, exist_ok=True)
    link = root / latest if latest else None
    with temporary_folder(root) as aside:
        new = NewRun(aside / prefix)
        new.path.mkdir()
        yield new
        write_manifest(new.path)
        try:
            _publish(new, root, f"{prefix}_{time.strftime('%Y%m%d_%H%M%S')}")
            if link:
                point_link(link, new.final.name, aside)
        except OSError as error:
            if new.path.exists():
                raise
            raise RunFailed(
                f"{new.final}: complete, but {latest} cannot be linked to it: {error.strerror}"
            ) from error
        except BaseException:
            renamed = new.final and not new.path.exists()
            if renamed and link and linked_name(link) != new.final.name:
                os.rename(new.final, new.path)  # no link names it: nothing was published
            raise


def publish_files(files, output_dir, latest, prefix, ours):
    """Publish a run that was made on another machine: {path in the run: bytes}; returns its folder.

    ours  the "arguments" and "engine" that every experiment_config.json in it must name
    """
    ours = {"arguments": portable_arguments(ours["arguments"]), "engine": ours["engine"]}
    ours |= {"git": git_state()}
    with create_run(output_dir, latest, prefix) as new:
        for name, content in files.items():
            path = new.path / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            if path.name == CONFIG:
                write_json(path, read_json(path) | ours)
        for name in files:  # of a folder inside the run: its config is another now
            if name.endswith("/manifest.json"):
                write_manifest((new.path / name).parent)
    return new.final


def _publish(new, root, name):
    """Rename a finished run to `name` in `root`, or to <name>_2, _3 ... where that is taken."""
    for n in itertools.count(1):
        new.final = root / (name if n == 1 else f"{name}_{n}")
        if os.path.lexists(new.final):
            continue
        try:
            os.rename(new.path, new.final)
        except OSError:
            if not os.path.lexists(new.final):  # else another run was published in between
                raise
        else:
            return


def point_link(link, name, aside):
    """Let `link` name the run `name` beside it in one step, by a symlink or else a text file.

    aside  a temporary folder on the same file system
    """
    new = aside / link.name
    if not _make_symlink(new, name):
        new.write_text(f"{name}\n", encoding="ascii")
    os.replace(new, link)


def _make_symlink(path, name):
    """Make a symlink to a folder; False where the file system has none."""
    try:
        path.symlink_to(name, target_is_directory=True)
    except (OSError, NotImplementedError):
        return False
    return True


def say_limits(output_dir):
    """One line for what the file system of the results lacks, and what is done instead.

    To be called before the work: it is tried in the folder, or in the one that will hold it.
    """
    place = Path(output_dir)
    while not place.is_dir():
        place = place.parent
    lacks = {}
    with temporary_folder(place) as aside:
        if not has_lock(aside):
            lacks["file locks"] = "what killed runs leave there (.tmp_*) stays until you remove it"
        if not _make_symlink(aside / "link", "run"):
            lacks["symlinks"] = "latest_* are text files that hold a run's name"
    for what, instead in lacks.items():
        print(f"note: {printable(place)}: has no {what}; {instead}")


def write_manifest(folder):
    """manifest.json: size and SHA-256 of every other file. It is written last."""
    files = sorted(p for p in Path(folder).rglob("*") if p.is_file() and p.name != "manifest.json")
    entries = {
        p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256_of(p)}
        for p in files
    }
    write_json(Path(folder) / "manifest.json", {"schema_version": SCHEMA_VERSION, "files": entries})
