"""Finished pieces of long work: one npz each, named by the hash of all that its numbers depend on.

The same command goes on with the pieces that are there. Work with another model, other texts or
another method has pieces with other names, so nothing has to be refused, locked or mixed up.
"""

import contextlib
import hashlib
import json

from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.specs import model_identity
from rolecircuits.runs.npz import read_npz, write_npz


def piece_name(version, facts, **rest):
    """The file of a piece: the SHA-256 of the model and of `rest`, JSON data in this order.

    version  of what is in the piece    facts  of the model, as in experiment_config.json
    """
    model = [facts["id"], *model_identity(facts).values()]
    whole = {"version": version, "model": model} | rest
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest() + ".npz"


def read_piece(path, shapes):
    """The arrays of a finished piece, or None where there is none or it is damaged (this is said).

    shapes  {array name: the shape that it must have}
    """
    if not path.is_file():
        return None
    try:
        arrays = read_npz(path, list(shapes))
    except UserError as error:
        print(f"note: {printable(error)}; done again")
        return None
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            print(
                f"note: {printable(path)}: {name} is {arrays[name].shape}, expected {shape}; "
                "done again"
            )
            return None
    return arrays


def write_piece(path, arrays):
    """Keep a finished piece. Another process that does the same work may be removing the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_npz(path, arrays)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_npz(path, arrays)


def remove_pieces(paths):
    """Remove pieces whose results are published, and their folder once it is empty."""
    for path in paths:
        path.unlink(missing_ok=True)
    for folder in {path.parent for path in paths}:
        with contextlib.suppress(OSError):  # it holds the pieces of other work
            folder.rmdir()
