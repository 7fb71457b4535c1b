"""JSON, CSV and JSONL written aside and renamed, so that a reader never meets half a file.

What is being written lies in a hidden folder .tmp_... whose lock file is locked as long as the
process lives. By that the next one tells it from what a killed process has left, and removes that.
"""

import contextlib
import csv
import json
import math
import os
import re
import shutil
import unicodedata
import uuid
from pathlib import Path

from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.files import TEMPORARY

LOCK = ".lock"
OURS = re.compile(re.escape(TEMPORARY) + "[0-9a-f]{16}")  # what `temporary_name` gives
# ValueError: bad UTF-8, bad JSON, a number of more than 4,300 digits
JSON_ERRORS = (ValueError, RecursionError)


def temporary_name():
    """A hidden name that no other process uses."""
    return TEMPORARY + uuid.uuid4().hex[:16]


@contextlib.contextmanager
def temporary_folder(parent):
    """A hidden folder in `parent` for what is being written; it is gone when the block ends.

    Those that killed processes left in `parent` are removed first.
    """
    parent = Path(parent)
    remove_stale_folders(parent)
    # Its name is known before it is made, so that an interrupt leaves none behind.
    folder, lock = parent / temporary_name(), None
    try:
        while (lock := _make_locked(folder)) is None:
            folder = parent / temporary_name()
        yield folder
    finally:
        try:
            _remove_folder(folder, lock)
        except KeyboardInterrupt:  # an interrupt of the removal
            _remove_folder(folder, lock)
            raise


def _make_locked(folder):
    """Make a folder and lock the lock file in it, which is returned open.

    None where a process that looks for stale folders met it before it was locked, and removed it.
    """
    folder.mkdir()
    try:
        lock = open(folder / LOCK, "ab", buffering=0)  # noqa: SIM115  (it stays open)
    except FileNotFoundError:
        return None
    try:
        locked = _lock(lock)
    except OSError:  # the file system has no locks: the text keeps others from removing the folder
        locked = lock.write(b"not locked: this file system has no locks\n")
    if locked and os.fstat(lock.fileno()).st_nlink:
        return lock
    lock.close()
    return None


def _lock(file):
    """Whether an open file could be locked now; OSError where its file system has no locks."""
    from filelock import lock_descriptor  # brings asyncio; scripts import this module for --help

    return lock_descriptor(file.fileno(), blocking=False)


def has_lock(folder):
    """False where a temporary folder could not be locked."""
    return (folder / LOCK).stat().st_size == 0


def _remove_folder(folder, lock):
    if lock is not None:
        lock.close()
    shutil.rmtree(folder, ignore_errors=True)


def remove_stale_folders(parent):
    """Remove the temporary folders of killed processes: nobody holds their lock.

    Whatever else has such a name is not ours and stays: it has another form, or no lock file.
    """
    for folder in Path(parent).glob(f"{TEMPORARY}*"):
        if not OURS.fullmatch(folder.name) or folder.is_symlink():
            continue
        stale = False
        with contextlib.suppress(OSError):
            if not (folder / LOCK).exists():
                folder.rmdir()  # killed before it was locked; OSError where it is not empty
                continue
            with open(folder / LOCK, "r+b") as lock:
                stale = _lock(lock) and has_lock(folder)
                if stale:
                    shutil.rmtree(folder, ignore_errors=True)
        if stale and os.name == "nt":  # Windows removes no file that is open
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def replaced_file(path, mode="w"):
    """A file object whose content appears under `path` when the block ends without an error."""
    path = Path(path)
    # Half a surrogate pair (a file name that is not UTF-8) becomes \udcff, the same text in JSON.
    text = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
    with temporary_folder(path.parent) as folder:
        with open(folder / path.name, mode, **({} if "b" in mode else text)) as file:
            yield file
        os.replace(folder / path.name, path)


def write_json(path, value):
    """Strict JSON (no NaN: None stands for an undefined number), indented; texts as they are."""
    with replaced_file(path) as file:
        json.dump(_plain(value), file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def _plain(value):
    """`value` as what JSON has: numpy's arrays and numbers as Python's, NaN as None."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):  # of numpy, which this module does without
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def write_csv(path, rows, columns=None, facts=None):
    """Rows (dicts with the same keys) as CSV; NaN is an empty field, numbers have 10 digits.

    columns  None: those of the first row; without rows only the facts are named
    facts  first columns, the same in every row: model, set, format and run (arrays.Run.facts)
    docs/COLUMNS.md says what each column of each file is.

    Text that a spreadsheet would run as a formula gets a quote mark, and control characters (ANSI
    escapes among them) are written as escapes.
    """
    facts = facts or {}
    columns = columns or (rows[0] if rows else ())
    columns = [*facts, *(name for name in columns if name not in facts)]
    with replaced_file(path) as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([[_csv_cell((facts | row)[name]) for name in columns] for row in rows])


def _csv_cell(value):
    if isinstance(value, str):
        value = f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else value
        if value.isprintable():
            return value
        return "".join(
            c if c in "\t\r\n" or unicodedata.category(c) != "Cc" else printable(c) for c in value
        )
    if hasattr(value, "tolist"):  # a number of numpy
        value = value.tolist()
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.10g}"
    return value


def write_prompts(path, rows):
    """prompts.jsonl: one JSON object a prompt, in the order of the prompt axis."""
    with replaced_file(path) as file:
        for row in rows:
            file.write(json.dumps(_plain(row), ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path):
    """The JSON value of a file of a run, or a UserError that says what is wrong with it."""
    (value,) = _read_values(path, lambda text: [text])
    return value


def read_prompts(path):
    """The values of prompts.jsonl, one a line; U+2028 and U+0085 are characters and end no line."""
    return _read_values(path, lambda text: text.removesuffix("\n").split("\n"))


def _read_values(path, split):
    """The JSON values of the parts into which `split` divides the text of a file of a run."""
    try:
        return [json.loads(part) for part in split(path.read_text(encoding="utf-8"))]
    except JSON_ERRORS as error:
        raise UserError(f"{path}: damaged: {error}") from error
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; the run is damaged") from error


def prepare_folder(path):
    """Make an output folder for figures or tables, with its data/ inside; returns it as a Path."""
    path = Path(path)
    try:
        (path / "data").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output_dir {path}: {error.strerror}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"--output_dir {path}: cannot be written to")
    return path


def pack_folder(folder):
    """{path inside the folder: bytes} of a run, without the manifest of its top."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    named = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    named.pop("manifest.json")
    return named
