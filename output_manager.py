"""Run folders: written aside, renamed when complete, checked when read. Nothing is ever pickled.

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

from rolecircuits.inputs.arguments import MAX_SEED, check_output_dir
from rolecircuits.inputs.errors import RunFailed, UserError, printable
from rolecircuits.inputs.files import TEMPORARY, follow_links, linked_name, sha256_of
from rolecircuits.runs.files import has_lock, read_json, read_prompts, temporary_folder, write_json
from rolecircuits.runs.record import READABLE, SCHEMA_VERSION, git_state, portable_arguments

CONFIG, PROMPTS, ATTENTION = "experiment_config.json", "prompts.jsonl", "attention.npz"


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
                _point_link(link, new.final.name, aside)
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


def _point_link(link, name, aside):
    """Let `link` name the run `name` beside it in one step, by a symlink or else a text file."""
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


def resolve_run(path):
    """The folder of a complete run that a path or a latest_* link names, or why there is none."""
    path = Path(path)
    target = follow_links(path)
    if not target.exists():
        is_link = path.is_symlink() or target != path
        why = "points at a folder that is gone" if is_link else "no such folder"
        raise UserError(f"{path}: {why}; run activation_analysis.py first, or name another run")
    if not target.is_dir():
        raise UserError(f"{path}: is a file; a run is a folder")
    folder = target.resolve()
    unpublished = any(part.startswith(TEMPORARY) for part in folder.parts[-3:])
    if unpublished or not (folder / "manifest.json").is_file():
        raise UserError(
            f"{path}: not a complete run (no manifest.json); it was interrupted or is still being "
            "written"
        )
    return folder


def check_files(path, names, verify=True):
    """The folder of a complete run in which these files are as its manifest says.

    verify  False only asks that they are there: git or a mail client may change line ends
    """
    folder = resolve_run(path)
    manifest = read_json(folder / "manifest.json")
    version = manifest.get("schema_version") if isinstance(manifest, dict) else "none"
    if type(version) is not int or version not in READABLE:
        shown, readable = printable(version), " and ".join(map(str, READABLE))
        raise UserError(
            f"{folder}: schema version {shown}; this version reads {readable}, run it again"
        )
    files = manifest.get("files")
    for name in names:
        entry = files.get(name) if isinstance(files, dict) else None
        _check_file(folder / name, entry, verify)
    return folder


def _check_file(path, entry, verify):
    """Refuse a file that is not as its entry in the manifest says."""
    if not isinstance(entry, dict) or not path.is_file() or path.is_symlink():
        raise UserError(f"{path}: missing; the run is damaged, run the analysis again")
    size = path.stat().st_size
    if verify and size != entry.get("bytes"):
        stated = printable(entry.get("bytes"))
        raise UserError(f"{path}: has {size} bytes, its manifest says {stated}; it is damaged")
    if verify and sha256_of(path) != entry.get("sha256"):
        raise UserError(f"{path}: its SHA-256 is not the manifest's; it was changed after the run")


def load_run(path, verify=True):
    """A complete run as a Run, checked: manifest, schema, names, shapes and ranges.

    verify  False does not compare its files with the manifest; what is in them is still checked
    """
    from rolecircuits.runs import arrays as run_arrays  # numpy; scripts import this for --help

    folder = check_files(path, (CONFIG, PROMPTS, ATTENTION), verify)
    config = read_config(folder)
    schema = read_json(folder / "manifest.json")["schema_version"]
    arrays = run_arrays.read_arrays(folder / ATTENTION, schema)
    prompts = read_prompts(folder / PROMPTS)
    _check_prompts(folder / PROMPTS, prompts, arrays)
    return run_arrays.assemble_run(folder, config, prompts, arrays)


def _check_prompts(path, rows, arrays):
    """Refuse prompts that are not those of the arrays."""
    ids = [row.get("id") if isinstance(row, dict) else None for row in rows]
    if ids != arrays["prompt_id"].tolist():
        raise UserError(f"{path}: its prompts are not those of attention.npz; the run is damaged")
    for row, category in zip(rows, arrays["category"].tolist(), strict=True):
        text = row.get("text")
        if row.get("category") != category or not (isinstance(text, str) and text.strip()):
            which = f"category or text of {printable(row['id'])}"
            raise UserError(f"{path}: {which} is wrong or missing; the run is damaged")


def read_config(folder):
    """experiment_config.json of a run, with the fields that readers use checked."""
    path = folder / CONFIG
    config = read_json(path)
    try:
        is_text = isinstance(config["model"]["id"], str)
        known = is_text and config["prompts"]["format"] in ("raw", "chat")
    except (KeyError, TypeError):
        known = False
    if not known:
        raise UserError(f"{path}: model.id or prompts.format is missing; it is damaged")
    for name in ("revision", "weights_sha256", "tokenizer_sha256"):
        value = config["model"].get(name)
        if not isinstance(value, str | None):
            raise UserError(f"{path}: model.{name} is {printable(value)[:60]}; it must be a text")
    seed = config.get("seed", 0)
    if type(seed) is not int or not 0 <= seed <= MAX_SEED:
        shown = printable(seed)[:60]
        raise UserError(f"{path}: seed is {shown}; it must be a whole number from 0 to {MAX_SEED}")
    return config
