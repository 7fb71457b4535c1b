"""Which run folders lie in a folder and those below it, and which of them may be removed.

A link that leads out of the folder is never followed, and a run is removed only where everything in
it is in its manifest.
"""

import os
import shutil
import sys
import textwrap
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from rolecircuits.inputs.errors import RunFailed, UserError, printable
from rolecircuits.inputs.files import RUN_NAME, TEMPORARY, linked_name
from rolecircuits.inputs.folders import TUNING, kind_of
from rolecircuits.runs.files import read_json, temporary_folder
from rolecircuits.runs.record import CONFIG, prompt_set_of

MANIFEST = "manifest.json"
WIDTH = 80
PREFIXES = "run repeat intervention sweep documents chat generation".split()


@dataclass
class Found:
    """A run folder, or what is left of one.

    kind     the word that its name begins with       created  seconds since 1970
    bytes    of all its files                         facts    one line: model, prompts
    damage   why it cannot be read, or None           foreign  why it is not wholly ours, or None
    links    names of the links to it                 repeats  name of the run that it repeats
    """

    path: Path
    kind: str
    created: float
    bytes: int
    facts: str = ""
    damage: str | None = None
    foreign: str | None = None
    links: list = field(default_factory=list)
    repeats: str | None = None


def find_runs(folder):
    """[Found] of a folder and those below it, folder by folder, newest last."""
    folder = Path(folder)
    if not folder.is_dir():
        why = "is a file" if folder.exists() else "no such folder"
        raise UserError(f"{folder}: {why}; name the folder that holds runs")
    kind = kind_of(folder)
    if kind is not None or (folder / MANIFEST).exists():
        what = kind.what if kind else "a run"
        raise UserError(f"{folder}: is {what}; name the folder that holds runs")
    found, places = [], list(_folders_of_runs(folder))
    for place in places:
        inside = [read_run(path) for path in place.iterdir() if _is_run(path)]
        found += sorted(inside, key=lambda run: (run.created, run.path.name))
    for path in (path for place in places for path in place.iterdir()):
        for run in _linked(path, found):
            run.links.append(path.name)
    return found


def _folders_of_runs(folder):
    """The folder and every folder below that is no run, hidden or a link."""
    yield folder
    for path in sorted(folder.iterdir()):
        hidden = path.name.startswith(".")
        if path.is_dir() and not (hidden or path.is_symlink() or _is_run(path)):
            yield from _folders_of_runs(path)


def _is_run(path):
    """Whether a folder is a run, is one that lost something, or holds one being written."""
    if path.is_symlink() or not path.is_dir():
        return False
    if path.name.startswith(TEMPORARY):
        return True
    named = RUN_NAME.fullmatch(path.name) and path.name.split("_")[0] in PREFIXES
    return bool(named) or (path / MANIFEST).is_file()


def _linked(link, found):
    """The Found that a link names: a latest_*, or any other symlink."""
    if not link.is_symlink() and linked_name(link) is None:
        return []
    target = os.path.realpath(link.parent / linked_name(link))  # Path.resolve refuses a loop
    return [run for run in found if os.path.realpath(run.path) == target]


def read_run(path):
    """The Found of one run folder; nothing in it is believed."""
    if kind_of(path) is TUNING:
        return _read_study(path)
    files, others = _files_in(path)
    size = sum(file.lstat().st_size for file in files)
    kind = path.name.split("_")[0] if RUN_NAME.fullmatch(path.name) else "renamed"
    run = Found(path, kind, path.lstat().st_mtime, size)
    if path.name.startswith(TEMPORARY):
        run.kind, run.damage = "unfinished", "being written, or left by a killed process"
        return run
    try:
        entries = _read_entries(path)
        config = read_json(path / CONFIG)
        run.created = datetime.strptime(config["created"], "%Y-%m-%dT%H:%M:%S%z").timestamp()
        run.facts = describe_config(config)
    except UserError as error:
        said = str(error).removeprefix(f"{path}{os.sep}").replace(": damaged:", ":")
        run.damage = said if said.startswith("incomplete") else f"damaged: {said}"
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        run.damage = f"damaged: {CONFIG} is not as activation_analysis.py writes it"
    if run.damage:
        return run
    run.damage = _compare_sizes(path, entries)
    known = {path / name for name in entries} | {path / MANIFEST}
    extra = [file for file in files if file not in known and file.name != MANIFEST] + others
    if extra:
        run.foreign = f"{extra[0].relative_to(path)} is not in its manifest"
    if kind == "renamed":
        run.foreign = "it was given another name"
    if kind == "repeat" and (path / "repeat.json").is_file():
        try:
            told = read_json(path / "repeat.json")
        except UserError:
            run.damage = "damaged: repeat.json is not JSON"
        else:
            run.repeats = told.get("repeat_of") if isinstance(told, dict) else None
    return run


def _read_study(path):
    """The Found of a tuning study, whose checkpoints are runs of their own: it is never removed."""
    run = Found(
        path, "study", path.lstat().st_mtime, sum(f.lstat().st_size for f in _files_in(path)[0])
    )
    run.facts = "a tuning study"
    run.foreign = "a tuning study is not removed here"
    return run


def _files_in(path):
    """(files, links and other things) in a folder, at any depth; links are not followed."""
    files, others = [], []
    for place, folders, names in os.walk(path):
        for name in (*folders, *names):
            file = Path(place, name)
            if file.is_symlink() or not (file.is_dir() or file.is_file()):
                others.append(file)
            elif file.is_file():
                files.append(file)
    return files, others


def _read_entries(path):
    """{file: its entry} of a manifest."""
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise UserError(f"incomplete: no {MANIFEST}")
    entries = read_json(manifest)
    entries = entries.get("files") if isinstance(entries, dict) else None
    if not isinstance(entries, dict) or CONFIG not in entries:
        raise UserError(f"{MANIFEST} does not list the run's files")
    return entries


def _compare_sizes(path, entries):
    """Why the files are not those of the manifest, or None; the SHA-256 is compared by readers."""
    for name, entry in entries.items():
        file = path / name
        if not file.is_file():
            return f"damaged: {printable(name)} is missing"
        if not isinstance(entry, dict) or file.stat().st_size != entry.get("bytes"):
            return f"damaged: {printable(name)} has another size than its manifest says"
    return None


def describe_config(config):
    """Model, prompt set, format and number of prompts (or documents) of an experiment_config."""
    parts = [config["model"]["id"]]
    if "documents" in config:
        source = Path((config.get("arguments") or {}).get("documents") or "")
        parts += [source.name, f"{config['documents']['n']} documents"]
    else:
        fed = config["prompts"]
        parts += [prompt_set_of(config), fed["format"], f"{fed['n']} prompts"]
    edits = config.get("interventions")
    if isinstance(edits, list) and edits:
        parts.append(f"{len(edits)} edits")
    if isinstance(config.get("sweep"), dict):
        parts.append(f"every head, {config['sweep'].get('method')}")
    if config.get("status") == "partial":
        parts.append("some failed")
    return ", ".join(printable(part) for part in parts)


def print_runs(found):
    """Two lines a run, three where it is damaged, under the name of its folder."""
    place = None
    for run in found:
        if run.path.parent != place:
            place = run.path.parent
            print(f"{printable(place)}/")
        print("\n".join(describe_run(run)))
    damaged = sum(run.damage is not None for run in found)
    more = f", {damaged} of them unfinished or damaged" if damaged else ""
    size = show_bytes(sum(run.bytes for run in found))
    print(f"{len(found)} runs, {size}{more}")


def describe_run(run):
    """The lines of a run: name, size, date and links; what it is of; what is wrong with it."""
    date = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.created))
    links = ", ".join(map(printable, run.links))
    lines = [f"  {printable(run.path.name):29} {show_bytes(run.bytes):>9}  {date}"]
    beside = len(f"{lines[0]}  {links}") <= WIDTH
    lines[0] = f"{lines[0]}  {links}".rstrip() if beside else lines[0]
    for text in ("" if beside else links, run.facts, run.damage, run.foreign):
        lines += textwrap.wrap(
            printable(text or ""), WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 6
        )
    return lines


def show_bytes(n):
    """A size in MB (10^6 bytes), or kB below one."""
    return f"{n / 1e6:,.1f} MB" if n >= 1e6 else f"{n / 1e3:.1f} kB"


def choose_removed(found, keep):
    """([(Found, why it stays)], [Found that may go]): the newest `keep` of each kind stay.

    A run counts where it is whole and ours; what is not is left alone and counts for none.
    """
    ours = [run for run in found if not (run.damage or run.foreign)]
    kept = {id(run): ", ".join(run.links) for run in ours if run.links}
    for of_kind in _by_kind(ours).values():
        for run in of_kind[len(of_kind) - keep :] if keep else []:
            kept.setdefault(id(run), "among the newest")
    for run in reversed(ours):  # what a repetition repeats is older, and may be one itself
        if run.repeats and id(run) in kept:
            for other in ours:
                if other.path.name == run.repeats:  # it may lie in another folder
                    kept.setdefault(id(other), f"{run.path.name} repeats it")
    stay = [(run, run.damage or run.foreign or kept.get(id(run))) for run in found]
    gone = [run for run, why in stay if why is None]
    return [(run, why) for run, why in stay if why is not None], gone


def _by_kind(found):
    """{(folder, kind): [Found]}, in the order of `found`."""
    groups = {}
    for run in found:
        groups.setdefault((run.path.parent, run.kind), []).append(run)
    return groups


def print_removed(kept, removed):
    """What stays and why, then what would go."""
    for run, why in kept:
        print("\n".join(_wrap(f"stays  {run.path}: {why}")))
    for run in removed:
        print("\n".join(_wrap(f"to go  {run.path}: {show_bytes(run.bytes)}")))
    size = show_bytes(sum(run.bytes for run in removed))
    print(f"{len(kept)} folders stay, {len(removed)} to remove: {size}")


def _wrap(line):
    return textwrap.wrap(printable(line), WIDTH, subsequent_indent=" " * 7, break_on_hyphens=False)


def ask_yes():
    """Whether a person at a terminal types yes."""
    if not (sys.stdin and sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    try:
        return input("type yes to remove them: ").strip() == "yes"
    except EOFError:
        return False


def remove_runs(removed):
    """Remove run folders, each moved aside first so that no reader meets half of one."""
    n_bytes = 0
    for run in removed:
        if any(_linked(link, [run]) for link in run.path.parent.iterdir()):
            print(f"stays  {printable(run.path)}: a link names it now")
            continue
        with temporary_folder(run.path.parent) as aside:
            os.rename(run.path, aside / run.path.name)
            try:
                shutil.rmtree(aside / run.path.name)
            except OSError as error:
                raise RunFailed(
                    f"{run.path}: could not be removed whole: {error.strerror}"
                ) from error
        n_bytes += run.bytes
    print(f"removed: {show_bytes(n_bytes)}")
