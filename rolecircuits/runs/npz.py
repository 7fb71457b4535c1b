"""Arrays in npz files: nothing is pickled, and no declared size is believed unchecked."""

import io
import lzma
import struct
import tokenize
import warnings
import zipfile
import zlib

import numpy as np
import psutil

from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.runs.files import replaced_file

MAX_ARRAY_BYTES = 64 * 2**30
MAX_MEMBERS = 1000
MAX_CHARACTER = 0x10FFFF
# What zipfile, its decompressors and numpy's header parser raise for bytes that are no npz:
# RuntimeError is zipfile's answer to an encrypted member, and numpy reads headers with Python's own
# tokenizer and parser.
NPZ_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(tokenize.TokenError, SyntaxError, RuntimeError, EOFError, OSError),
    *(ValueError, TypeError, LookupError, ArithmeticError),
)


def write_npz(path, arrays):
    """Arrays of plain dtypes as a compressed npz; object arrays, which need pickle, are refused."""
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise TypeError(f"{name} is an object array; only plain dtypes are written")
    with replaced_file(path, "wb") as file:
        np.savez_compressed(file, **arrays)


def npz_names(path):
    """The names of the arrays of an npz, [] where it cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except NPZ_ERRORS:
        return []


def read_npz(path, names):
    """{name: array} of an npz, without unpickling and without trusting its declared sizes."""
    try:
        with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(path) as archive:
            _check_sizes(path, archive, names)
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in names if name not in archive.files]
            if missing:
                raise UserError(
                    f"{path}: array {missing[0]} is missing; expected {', '.join(names)}"
                )
            arrays = {name: archive[name] for name in names}
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except NPZ_ERRORS as error:
        pickled = "allow_pickle" in str(error)
        why = "object arrays are never unpickled" if pickled else f"damaged: {error}"
        raise UserError(f"{path}: {why}") from error
    except MemoryError as error:
        raise UserError(f"{path}: its arrays do not fit into memory") from error
    for name, array in arrays.items():
        _check_text(path, name, array)
    return arrays


def _check_sizes(path, archive, names):
    """Refuse what is no archive of a run, or does not fit into memory: a bomb, a run for another
    machine."""
    members = archive.infolist()
    if len(members) > MAX_MEMBERS:
        raise UserError(
            f"{path}: has {len(members)} members; an archive of a run has at most {MAX_MEMBERS}"
        )
    for info in members:
        _check_declared_size(path, archive, info)
    needed = sum(info.file_size for info in members if info.filename[:-4] in names)
    free = psutil.virtual_memory().available
    if needed > free:
        raise UserError(
            f"{path}: its arrays take {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB of memory "
            "are free"
        )


def _check_text(path, name, array):
    """numpy reads any 4 bytes as a character; Python cannot hold those beyond the last one."""
    if array.dtype.kind == "U" and array.size and array.dtype.itemsize:
        characters = np.frombuffer(array.tobytes(), dtype=f"{array.dtype.str[0]}u4")
        if characters.max() > MAX_CHARACTER:
            raise UserError(
                f"{path}: {name} holds {int(characters.max())}, which is not a character"
            )


def _check_declared_size(path, archive, info):
    """Refuse a member whose header asks for more than its own bytes hold, as forged ones do."""
    where = f"{path}: {printable(info.filename)}"
    if not info.filename.endswith(".npy") or info.file_size > MAX_ARRAY_BYTES:
        raise UserError(f"{where} ({info.file_size} bytes) is not an array of a run")
    with archive.open(info) as member:
        head = io.BytesIO(member.read(4096))
    form = np.lib.format
    first = form.read_magic(head) == (1, 0)
    read_header = form.read_array_header_1_0 if first else form.read_array_header_2_0
    shape, _, dtype = read_header(head)
    if dtype.hasobject:
        raise UserError(f"{where} is an object array; those are never unpickled")
    declared = int(np.prod([int(n) for n in shape], dtype=object)) * dtype.itemsize
    if declared + head.tell() != info.file_size:
        raise UserError(f"{where} declares {declared} bytes and holds {info.file_size}")
