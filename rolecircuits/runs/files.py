"""JSON, CSV and JSONL written aside and renamed, so that a reader never meets half a file; locks and stale files."""

import contextlib
import csv
import fcntl
import json
import os
import unicodedata
import uuid
from pathlib import Path

import numpy as np

from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.files import TEMPORARY
from rolecircuits.runs.record import portable

UNIQUE = 16
LOCK = ".lock"
JSON_ERRORS = (
    ValueError,
    RecursionError,
)  # ValueError: bad UTF-8, bad JSON, a number of more than 4,300 digits


def _open_lock(path):
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


@contextlib.contextmanager
def _locked(path):
    """Wait for, hold and release an advisory lock; the kernel releases it when the process dies."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_stale_files(folder):
    """Remove the temporary files in a folder that a killed process left there: whoever still writes one holds its lock."""
    for path in folder.glob(f"{TEMPORARY}{'?' * UNIQUE}"):
        if path.is_file() and not path.is_symlink():
            with contextlib.suppress(OSError):
                lock = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink(missing_ok=True)
                finally:
                    os.close(lock)


def temporary_name():
    """A hidden name that no other process uses. It is known before the file is made, so an interrupt leaves none behind."""
    return TEMPORARY + uuid.uuid4().hex[:UNIQUE]


def _open_aside(aside):
    """Descriptor of the new file `aside`, locked for as long as it is open.

    A process that looks for stale files may have met it before it was locked, and removed it: then it is made again.
    """
    while True:
        descriptor = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)


@contextlib.contextmanager
def replaced_file(path, mode="w"):
    """A file object whose content appears under `path` only when the block ends without an error.

    Until then it is in a hidden file beside it; those that killed processes left in the same folder are removed first.
    """
    path = Path(path)
    _remove_stale_files(path.parent)
    aside = path.with_name(temporary_name())
    try:
        # Half a surrogate pair (a file name that is not UTF-8) becomes \udcff, which is the same text in JSON.
        text = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
        with open(_open_aside(aside), mode, **({} if "b" in mode else text)) as file:
            yield file
            file.flush()
            os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_json(path, value):
    """Strict JSON (no NaN: None stands for an undefined number), indented, written aside and renamed.

    The home folder is written as ~ wherever it is named, as `portable` says.
    """
    with replaced_file(path) as file:
        json.dump(portable(_plain(value)), file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def _plain(value):
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def write_csv(path, rows, columns=None):
    """Rows (list of dicts with the same keys) as CSV. Text that a spreadsheet would run as a formula gets a quote mark,
    and control characters (ANSI escapes among them) are written as escapes.

    Undefined numbers (NaN) are written as empty fields; numbers carry 10 significant digits.
    """
    columns = columns or list(rows[0])
    with replaced_file(path) as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([[_csv_cell(row[column]) for column in columns] for row in rows])


def _csv_cell(value):
    if isinstance(value, str):
        value = f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else value
        return "".join(
            c if c in "\t\r\n" or unicodedata.category(c) != "Cc" else printable(c) for c in value
        )
    if isinstance(value, (float, np.floating)):
        return "" if np.isnan(value) else f"{value:.10g}"
    return value


def write_prompts(path, rows):
    """prompts.jsonl: one JSON object a prompt, in the order of the prompt axis."""
    with replaced_file(path) as file:
        for row in rows:
            file.write(json.dumps(_plain(row), ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path):
    """The JSON value of a file of a run, or a UserError that says what is wrong with it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
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
