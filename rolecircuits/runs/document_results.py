"""Read what activation_analysis.py --documents wrote, documents.npz, and check it for drawing."""

import numpy as np

from rolecircuits.inputs.categories import check_category
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.runs.files import read_json
from rolecircuits.runs.npz import npz_names, read_npz

DOCUMENTS = "documents.npz"
SHAPES = {
    "document_id": ("U", ("document",)),
    "category": ("U", ("document",)),
    "n_tokens": ("i", ("document",)),
    "turn_document": ("i", ("turn",)),
    "turn_role": ("U", ("turn",)),
    "turn_span": ("i", ("turn", 2)),
}
SHAPES |= {
    f"{part}_{kind}": ("f", (axis, "layer", "head"))
    for part, axis in (("whole", "document"), ("turn", "turn"))
    for kind in ("normalised", "sinkfree", "sink_mass")
}
SEGMENT_SHAPES = {  # not in runs of before they were kept
    "segment": ("U", ("segment",)),
    "turn_segment_mass": ("f", ("turn", "layer", "head", "segment")),
    "turn_segment_uniform": ("f", ("turn", "layer", "segment")),
}
ROUNDING = 1e-3


def read_documents_run(folder):
    """(arrays of documents.npz, config) of a documents run, checked.

    folder  of a complete run whose files were compared with its manifest
    """
    config = read_json(folder / "experiment_config.json")
    try:
        model, file = config["model"]["id"], config["arguments"]["documents"]
        known = isinstance(config["documents"], dict)
        known = known and isinstance(model, str) and isinstance(file, str)
    except (KeyError, TypeError):
        known = False
    if not known:
        raise UserError(
            f"{folder / 'experiment_config.json'}: model.id, documents or its file is missing; it "
            "is damaged"
        )
    path, shapes = folder / DOCUMENTS, dict(SHAPES)
    if "segment" in npz_names(path):
        shapes |= SEGMENT_SHAPES
    arrays = read_npz(path, list(shapes))
    _check_shapes(path, arrays, shapes)
    return arrays, config


def run_label(config):
    """Model and file of a documents run, for titles."""
    return f"{printable(config['model']['id'])}, {documents_name(config)}"


def run_columns(config):
    """The columns that every CSV of the run begins with: model, set (the file), format, run."""
    facts = {"model": config["model"]["id"], "set": documents_name(config)}
    return facts | {"format": config["documents"].get("format", "mixed"), "run": "documents"}


def documents_name(config):
    """The file of a documents run without its folder."""
    file = str(config["arguments"]["documents"]).replace("\\", "/").rsplit("/", 1)[-1]
    return printable(file)


def _check_shapes(path, arrays, shapes):
    """Refuse arrays whose names, shapes, kinds or ranges are not those of documents."""
    sizes = {}
    for name, (kind, axes) in shapes.items():
        array = arrays[name]
        if array.ndim != len(axes) or array.dtype.kind != kind:
            raise UserError(f"{path}: {name} is {array.dtype} {array.shape}; it is damaged")
        for axis, size in zip(axes, array.shape, strict=True):
            expected = axis if isinstance(axis, int) else sizes.setdefault(axis, size)
            if size != expected or not size:
                raise UserError(f"{path}: {name} has {size} values along {axis}; it is damaged")
    for name in set(arrays["category"].tolist()) - {""}:
        check_category(name, path)
    missing = {"system_text", "user_text", "assistant_text"}.difference(arrays.get("segment", ()))
    if "segment" in arrays and missing:
        raise UserError(f"{path}: has no segment {min(missing)}; it is damaged")
    owner = arrays["turn_document"]
    whole = np.array_equal(np.unique(owner), np.arange(sizes["document"]))
    if not whole or (np.diff(owner) < 0).any():
        raise UserError(f"{path}: its turns are not those of its documents; it is damaged")
    for name, (kind, _) in shapes.items():
        values = arrays[name]
        if kind == "f" and ((values < -ROUNDING) | (values > 1 + ROUNDING)).any():
            raise UserError(f"{path}: {name} holds a value outside [0, 1]; it is damaged")
