"""Read what interventions.py wrote: effects.json and head_effects.npz, checked before anything is drawn."""

import numpy as np

from rolecircuits.inputs.categories import CATEGORIES
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.runs.files import read_json
from rolecircuits.runs.npz import read_npz

DRAWN = ("kl", "surprisal_change", "rfc_change", "rsi_change")
INDEX_CHANGES = ("rfc_change", "rsi_change")
ROLES = ("candidate", "control")
EFFECT_PARTS = ("", "_low", "_high", "_control", "_p", "_q")
LARGEST = 1e100  # numbers beyond this are damage: no axis holds them
NO_KL = 1e-3  # rounding may take a divergence of float32 logits a little below 0
SWEEP_ARRAYS = ("kl", "category", "kl_by_prompt", "rfc_change", "rsi_change")


def read_effects(folder):
    """effects.json of an intervention run, its rows checked for what the figure and its CSV need."""
    path = folder / "effects.json"
    found = read_json(path)
    rows = found.get("rows") if isinstance(found, dict) else None
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: rows is missing or empty; run interventions.py again")
    texts = ("intervention", "role", "category")
    numbers = ["n", *(metric + part for metric in DRAWN for part in EFFECT_PARTS)]
    for i, row in enumerate(rows):
        for name in (*texts, *numbers):
            if not isinstance(row, dict) or name not in row:
                raise UserError(f"{path}: rows[{i}] lacks {name}; run interventions.py again")
            value = row[name]
            finite = type(value) in (int, float) and abs(value) <= LARGEST  # False for NaN
            if not (isinstance(value, str) and value if name in texts else value is None or finite):
                raise UserError(
                    f"{path}: rows[{i}].{name} is {printable(value)[:60]}; it is damaged"
                )
        for name, allowed in (("category", ("all", *CATEGORIES)), ("role", ROLES)):
            if row[name] not in allowed:
                raise UserError(
                    f"{path}: rows[{i}].{name} is {printable(row[name])[:60]!r}; it is damaged"
                )
        for metric in DRAWN:
            if (row[f"{metric}_low"] is None) != (row[f"{metric}_high"] is None):
                raise UserError(
                    f"{path}: rows[{i}] has half an interval of {metric}; it is damaged"
                )
    whole = {(row["intervention"], row["role"]) for row in rows if row["category"] == "all"}
    for i, row in enumerate(rows):
        if (row["intervention"], row["role"]) not in whole:
            raise UserError(
                f"{path}: rows[{i}]: {printable(row['intervention'])[:60]} has no row for all categories"
            )
    return rows


def read_sweep(folder, config):
    """(arrays, label, method) of a sweep run, shapes and values checked.

    folder, config  of a complete run whose files were compared with its manifest
    """
    path = folder / "head_effects.npz"
    arrays = read_npz(path, list(SWEEP_ARRAYS))
    sizes = arrays["kl"].shape
    prompts = arrays["kl_by_prompt"].shape[-1:]
    shapes = {"kl": sizes, "category": sizes[2:], "kl_by_prompt": sizes[:2] + prompts}
    shapes |= dict.fromkeys(INDEX_CHANGES, sizes[:2])
    for name, shape in shapes.items():
        kind = "U" if name == "category" else "f"
        if (
            len(sizes) != 3
            or 0 in sizes + prompts
            or (arrays[name].shape, arrays[name].dtype.kind) != (shape, kind)
        ):
            found = f"{arrays[name].dtype} {arrays[name].shape}"
            raise UserError(f"{path}: {name} is {found}, expected {shape} of kind {kind}")
    unknown = set(arrays["category"].tolist()) - set(CATEGORIES)
    if unknown:
        raise UserError(f"{path}: unknown category {printable(sorted(unknown)[0])!r}")
    for name in ("kl", "kl_by_prompt"):
        if not (np.isfinite(arrays[name]).all() and (arrays[name] > -NO_KL).all()):
            raise UserError(f"{path}: {name} holds a value that no KL divergence has")
    for name in INDEX_CHANGES:
        if np.isinf(arrays[name]).any():
            raise UserError(f"{path}: {name} is infinite")
    sweep = config.get("sweep")
    if not isinstance(sweep, dict) or not isinstance(sweep.get("method"), str):
        raise UserError(
            f"{folder / 'experiment_config.json'}: sweep.method is missing; it is damaged"
        )
    label = f"{printable(config['model']['id'])}, {config['prompts']['format']} prompts"
    return arrays, label, printable(sweep["method"])
