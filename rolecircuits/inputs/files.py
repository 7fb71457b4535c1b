"""Files that a user named: strict JSON, SHA-256, and the run that a latest_* link names."""

import hashlib
import json
import os
import re
from pathlib import Path

from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.folders import describe_folder

TEMPORARY = ".tmp_"  # a name that begins with it is being written, or was left by a killed process
HASHED_AT_ONCE = 2**24
# run_20260101_120000, run_20260101_120000_2, study_0123abcd
RUN_NAME = re.compile(r"[a-z]+_[0-9]{8}_[0-9]{6}(_[0-9]+)?|study_[0-9a-f]{8}")


def linked_name(link):
    """The name of the run beside it that a latest_* link names; None where `link` is no link.

    A link is a symlink, or, where the file system has none, a text file that holds the run's name.
    """
    if link.is_symlink():
        return os.readlink(link)
    if not link.is_file() or link.stat().st_size > 100:
        return None
    text = link.read_bytes().decode("ascii", "replace").strip()
    return text if RUN_NAME.fullmatch(text) else None


def follow_links(path):
    """`path`, or a folder inside a run, with a latest_* that is a text file replaced by its run."""
    path = Path(path)
    if path.parent.is_file():
        path = follow_links(path.parent) / path.name
    name = None if path.is_symlink() else linked_name(path)
    return path.with_name(name) if name else path


def sha256_of(path):
    """SHA-256 of a file's bytes, as hex. It is read in large blocks, because a thread that hashes
    beside others waits for them at each."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(HASHED_AT_ONCE):
            digest.update(block)
    return digest.hexdigest()


def read_text(path, flag):
    """The text of a UTF-8 file that the user named with `flag`, without a byte order mark."""
    try:
        if path.is_dir():
            raise UserError(f"{flag} {path}: is a folder{describe_folder(path)}, not a file")
        if not path.is_file():
            why = "is not a regular file" if path.exists() else "no such file"
            raise UserError(f"{flag} {path}: {why}")
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{flag} {str(path)[:200]}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{flag} {path}: not UTF-8 at byte {error.start}") from error


def read_strict_json(path, flag):
    """The JSON value in a file that the user named with `flag`.

    Duplicate keys, NaN and other encodings than UTF-8 are refused.
    """
    return parse_strict_json(read_text(path, flag), f"{flag} {path}")


def parse_strict_json(text, where, one_line=False):
    """The JSON value of a text; duplicate keys and NaN are refused, `where` begins the message."""
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if one_line else f"line {error.lineno}"
        raise UserError(f"{where}: not JSON at {place}: {error.msg}") from error
    except RecursionError as error:
        raise UserError(f"{where}: nested too deeply") from error
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def _unique_keys(pairs):
    unique = {}
    for key, value in pairs:
        if key in unique:
            raise ValueError(f"the key {printable(key)!r} appears twice")
        unique[key] = value
    return unique


def _refuse_constant(name):
    raise ValueError(f"{name} is not a value that JSON allows")
