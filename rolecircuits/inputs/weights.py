"""The weight files of a local model folder and their hash, without loading anything."""

import hashlib
import json
import re

from rolecircuits.inputs.errors import UserError, one_line, printable
from rolecircuits.inputs.files import sha256_of

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def named_weights(folder):
    """The files that transformers reads: model.safetensors, or else what its index names.

    The names in an index must be those of files in the folder itself.
    """
    index = folder / INDEX
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{index}: damaged: {one_line(error)}") from error
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise UserError(
                f"{index}: weight_map names {printable(name)!r}; a *.safetensors in the folder is "
                "needed"
            )
    return [folder / name for name in names]


def weights_sha256(files):
    """One hash over the weight files of a model."""
    return hashlib.sha256("".join(sha256_of(file) for file in files).encode()).hexdigest()
