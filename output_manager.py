"""Run folders: written aside, renamed when complete, checked when read. Nothing here is ever pickled.

    <output_dir>/run_20260101_120000/    one folder per run, never overwritten
    <output_dir>/latest_run              symlink to the newest complete run, swapped atomically at the very end

A run is complete when its manifest.json exists; the manifest holds the size and SHA-256 of every other file and is
written last. Until then the folder has a hidden name (.tmp_...), which no reader accepts; the next run removes those that
a killed process left behind.
"""

import contextlib
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from rolecircuits.inputs.arguments import MAX_SEED
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.files import sha256_of
from rolecircuits.runs.arrays import ARRAYS, Run, _check_arrays
from rolecircuits.runs.files import (
    JSON_ERRORS,
    LOCK,
    TEMPORARY,
    _locked,
    _open_lock,
    _remove_stale_files,
    read_json,
    temporary_name,
    write_json,
)
from rolecircuits.runs.npz import read_npz
from rolecircuits.runs.record import SCHEMA_VERSION, git_state, portable


@dataclass
class NewRun:
    """A run being written: `path` is where its files go now, `final` where they are once it is published."""

    path: Path
    final: Path = None


@contextlib.contextmanager
def create_run(output_dir, latest, prefix="run"):
    """Write a run aside and publish it whole: `with create_run(...) as new: write into new.path`.

    On leaving the block the manifest is written, the folder renamed to <prefix>_<time> and the symlink `latest` swapped
    (None: no link names the run). Any exception, Ctrl-C and SIGTERM included, removes the folder and leaves the previous
    `latest` as it was.
    """
    root = Path(output_dir)
    root.mkdir(parents=True, exist_ok=True)
    link = root / latest if latest else None
    if link and link.exists() and not link.is_symlink():
        raise UserError(
            f"{link}: is not a symlink; move it away, it is where the newest run is linked"
        )
    new, alive, renamed = NewRun(root / temporary_name()), None, False
    try:
        with _locked(root / LOCK):
            _remove_stale(root)
            new.path.mkdir()
            alive = _open_lock(new.path / LOCK)
        yield new
        write_manifest(new.path)
        with _locked(root / LOCK):
            (new.path / LOCK).unlink()
            new.final = _free_name(root, f"{prefix}_{time.strftime('%Y%m%d_%H%M%S')}")
            os.rename(new.path, new.final)
            renamed = True
            if link:
                swap_link(link, new.final.name)
    except BaseException:
        if renamed and link and not (link.is_symlink() and os.readlink(link) == new.final.name):
            os.rename(new.final, new.path)  # no link names it: nothing was published
        shutil.rmtree(new.path, ignore_errors=True)
        raise
    finally:
        if alive is not None:
            os.close(alive)


def publish_files(files, output_dir, latest, prefix, ours):
    """Publish a run that was made on another machine: {path in the run: bytes}; returns its folder.

    ours  what every experiment_config.json in it must say of this machine
    """
    ours = portable(ours | {"git": git_state()})
    with create_run(output_dir, latest, prefix) as new:
        for name, content in files.items():
            path = new.path / name
            path.parent.mkdir(exist_ok=True)
            if path.name == "experiment_config.json":
                write_json(path, json.loads(content) | ours)
            else:
                path.write_bytes(content)
        for name in files:  # of a folder inside the run: its config is another now
            if name.endswith("/manifest.json"):
                write_manifest((new.path / name).parent)
    return new.final


def swap_link(link, target):
    """Point the symlink `link` at `target` (a name beside it) in one atomic step."""
    aside = link.with_name(f"{TEMPORARY}{link.name}_{os.getpid()}")
    aside.unlink(missing_ok=True)
    try:
        aside.symlink_to(target)
        os.replace(aside, link)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _remove_stale(root):
    """Remove the temporary files, folders and links in a folder of runs whose process is gone (nobody holds their lock)."""
    _remove_stale_files(root)
    for path in root.glob(f"{TEMPORARY}*"):
        if path.is_symlink():
            path.unlink(missing_ok=True)
        elif path.is_dir():
            with contextlib.suppress(OSError):
                os.close(_open_lock(path / LOCK))
                shutil.rmtree(path)


def _free_name(root, name):
    """`name` in `root`, with _2, _3 ... appended while it is taken."""
    candidate, n = root / name, 2
    while candidate.exists() or candidate.is_symlink():
        candidate, n = root / f"{name}_{n}", n + 1
    return candidate


def write_manifest(folder):
    """manifest.json: size and SHA-256 of every other file in the folder. Written last: it makes the run complete."""
    files = sorted(
        p for p in Path(folder).rglob("*") if p.is_file() and p.name not in ("manifest.json", LOCK)
    )
    entries = {
        p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256_of(p)}
        for p in files
    }
    write_json(Path(folder) / "manifest.json", {"schema_version": SCHEMA_VERSION, "files": entries})


def resolve_run(path):
    """The folder that a run path or `latest_*` symlink names, refused with the reason where there is no complete run."""
    path = Path(path)
    if not path.exists():
        why = "points at a folder that is gone" if path.is_symlink() else "no such folder"
        raise UserError(f"{path}: {why}; run activation_analysis.py first, or name another run")
    if not path.is_dir():
        raise UserError(f"{path}: is a file; a run is a folder")
    folder = path.resolve()
    unpublished = any(part.name.startswith(TEMPORARY) for part in (folder, folder.parent))
    if unpublished or not (folder / "manifest.json").is_file():
        raise UserError(
            f"{path}: not a complete run (no manifest.json); it was interrupted or is still being written"
        )
    return folder


def check_files(path, names, verify=True):
    """The folder of a complete run whose manifest agrees with these files: size, and SHA-256 unless verify is False."""
    folder = resolve_run(path)
    manifest = read_json(folder / "manifest.json")
    if not isinstance(manifest, dict) or manifest.get("schema_version") != SCHEMA_VERSION:
        found = printable(manifest.get("schema_version")) if isinstance(manifest, dict) else "none"
        raise UserError(
            f"{folder}: schema version {found}; this version reads {SCHEMA_VERSION}, run the analysis again"
        )
    for name in names:
        _check_file(folder, manifest, name, verify)
    return folder


def load_run(path, verify=True):
    """A complete run as a Run, checked: manifest, schema, names, shapes and ranges; UserError names what is wrong.

    verify  False leaves out the SHA-256 of the files; everything else is still checked
    """
    folder = check_files(path, ("experiment_config.json", "prompts.jsonl", "attention.npz"), verify)
    config = read_config(folder)
    arrays = read_npz(folder / "attention.npz", list(ARRAYS))
    _check_arrays(folder / "attention.npz", arrays)
    return Run(folder, config, prompts=_read_prompts(folder / "prompts.jsonl", arrays), **arrays)


def read_config(folder):
    """experiment_config.json of a run, with the fields that readers use checked."""
    config = read_json(folder / "experiment_config.json")
    _check_config(folder, config)
    return config


def _read_prompts(path, arrays):
    try:
        # not splitlines(): U+2028 and U+0085 are characters of a prompt, not ends of a line
        rows = [
            json.loads(line)
            for line in path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        ]
    except JSON_ERRORS as error:
        raise UserError(f"{path}: damaged: {error}") from error
    if [r.get("id") if isinstance(r, dict) else None for r in rows] != arrays["prompt_id"].tolist():
        raise UserError(f"{path}: its prompts are not those of attention.npz; the run is damaged")
    for row, category in zip(rows, arrays["category"].tolist(), strict=True):
        if row.get("category") != category or not isinstance(row.get("text"), str):
            raise UserError(
                f"{path}: category or text of {printable(row['id'])} is wrong or missing; the run is damaged"
            )
    return rows


def _check_file(folder, manifest, name, verify):
    path, files = folder / name, manifest.get("files")
    entry = files.get(name) if isinstance(files, dict) else None
    if not isinstance(entry, dict) or not path.is_file() or path.is_symlink():
        raise UserError(f"{path}: missing; the run is damaged, run the analysis again")
    if path.stat().st_size != entry.get("bytes"):
        size = path.stat().st_size
        raise UserError(
            f"{path}: has {size} bytes, its manifest says {printable(entry.get('bytes'))}; it is damaged"
        )
    if verify and sha256_of(path) != entry.get("sha256"):
        raise UserError(f"{path}: its SHA-256 is not the manifest's; it was changed after the run")


def _check_config(folder, config):
    try:
        known = isinstance(config["model"]["id"], str) and config["prompts"]["format"] in (
            "raw",
            "chat",
        )
    except (KeyError, TypeError):
        known = False
    path = folder / "experiment_config.json"
    if not known:
        raise UserError(f"{path}: model.id or prompts.format is missing; it is damaged")
    for name in ("revision", "weights_sha256", "tokenizer_sha256"):
        if not isinstance(config["model"].get(name), str | None):
            raise UserError(
                f"{path}: model.{name} is {printable(config['model'][name])[:60]}; it must be a text"
            )
    seed = config.get("seed", 0)
    if type(seed) is not int or not 0 <= seed <= MAX_SEED:
        raise UserError(
            f"{path}: seed is {printable(seed)[:60]}; it must be a whole number from 0 to {MAX_SEED}"
        )
