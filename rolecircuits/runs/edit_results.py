"""Read what interventions.py wrote, effects.json and head_effects.npz, and check it for drawing."""

import numpy as np

from rolecircuits.inputs.categories import check_category
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.runs.files import read_json
from rolecircuits.runs.npz import read_npz

INDEX_CHANGES = ("rfc_change", "rsi_change")
DRAWN = ("kl", "surprisal_change", *INDEX_CHANGES)
EFFECT_PARTS = ("", "_low", "_high", "_control", "_p", "_q", "_rank")
TEXTS = ("intervention", "role", "category", "controls")
NUMBERS = ("n", "pool", *(metric + part for metric in DRAWN for part in EFFECT_PARTS))
ROLES = ("candidate", "control")
LARGEST = 1e100  # numbers beyond this are damage: no axis holds them
NO_KL = 1e-3  # rounding may take a divergence of float32 logits a little below 0
SWEEP_ARRAYS = ("kl", "category", "kl_by_prompt", *INDEX_CHANGES)


def csv_rows(rows):
    """Rows of effects.json under the column names of every CSV: kl with its interval kl_low and
    kl_high becomes kl_estimate."""
    names = {name: f"{name}_estimate" for name in rows[0] if f"{name}_low" in rows[0]}
    return [{names.get(name, name): value for name, value in row.items()} for row in rows]


def read_effects(folder):
    """The rows of effects.json, checked for what the figure and its CSV need."""
    path = folder / "effects.json"
    content = read_json(path)
    rows = content.get("rows") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: rows is missing or empty; run interventions.py again")
    for i, row in enumerate(rows):
        _check_row(f"{path}: rows[{i}]", row)
    whole = {(row["intervention"], row["role"]) for row in rows if row["category"] == "all"}
    for i, row in enumerate(rows):
        if (row["intervention"], row["role"]) not in whole:
            name = printable(row["intervention"])[:60]
            raise UserError(f"{path}: rows[{i}]: {name} has no row for all categories")
    return rows


def _check_row(where, row):
    """Refuse a row that lacks something, or holds what interventions.py does not write."""
    for name in (*TEXTS, *NUMBERS):
        if not isinstance(row, dict) or name not in row:
            raise UserError(f"{where} lacks {name}; run interventions.py again")
        value = row[name]
        shown = printable(value)[:60]
        if name in TEXTS:
            shown = repr(shown)
            good = isinstance(value, str) and (value or name == "controls")
            good = good and (name != "role" or value in ROLES)
            if good and name == "category" and value != "all":
                check_category(value, f"{where}.{name}")
        else:  # abs(NaN) <= LARGEST is False
            good = value is None or (type(value) in (int, float) and abs(value) <= LARGEST)
        if not good:
            raise UserError(f"{where}.{name} is {shown}; it is damaged")
    for metric in DRAWN:
        if row[f"{metric}_rank"] is not None and row["pool"] is None:
            raise UserError(f"{where} has a rank of {metric} without a pool; it is damaged")
        if (row[f"{metric}_low"] is None) != (row[f"{metric}_high"] is None):
            raise UserError(f"{where} has half an interval of {metric}; it is damaged")


def read_sweep(folder, config):
    """(arrays, label, method) of a sweep run, shapes and values checked.

    folder, config  of a complete run whose files were compared with its manifest
    """
    path = folder / "head_effects.npz"
    arrays = read_npz(path, list(SWEEP_ARRAYS))
    _check_sweep(path, arrays)
    sweep = config.get("sweep")
    if not isinstance(sweep, dict) or not isinstance(sweep.get("method"), str):
        config_path = folder / "experiment_config.json"
        raise UserError(f"{config_path}: sweep.method is missing; it is damaged")
    label = f"{printable(config['model']['id'])}, {config['prompts']['format']} prompts"
    return arrays, label, printable(sweep["method"])


def _check_sweep(path, arrays):
    """kl [layer, head, category], kl_by_prompt [layer, head, prompt], changes [layer, head]."""
    sizes = arrays["kl"].shape
    n_prompts = arrays["kl_by_prompt"].shape[-1:]
    shapes = {"kl": sizes, "category": sizes[2:], "kl_by_prompt": sizes[:2] + n_prompts}
    shapes |= dict.fromkeys(INDEX_CHANGES, sizes[:2])
    whole = len(sizes) == 3 and 0 not in sizes + n_prompts
    for name, shape in shapes.items():
        kind = "U" if name == "category" else "f"
        array = arrays[name]
        if not whole or (array.shape, array.dtype.kind) != (shape, kind):
            raise UserError(
                f"{path}: {name} is {array.dtype} {array.shape}, expected {shape} of kind {kind}"
            )
    for name in arrays["category"].tolist():
        check_category(name, path)
    for name in ("kl", "kl_by_prompt"):
        if not (np.isfinite(arrays[name]).all() and (arrays[name] > -NO_KL).all()):
            raise UserError(f"{path}: {name} holds a value that no KL divergence has")
    for name in INDEX_CHANGES:
        if np.isinf(arrays[name]).any():
            raise UserError(f"{path}: {name} is infinite")
