"""model_families.json: the base and instruct models of a family."""

import re
from pathlib import Path

from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.files import read_strict_json

SIDES = ("base", "instruct")
FAMILIES_FILE = Path(__file__).resolve().parents[2] / "model_families.json"
FAMILY_KEYS = ("model_id", "revision", "prompt_format", "system_prompt")


def load_family(path, name):
    """One family of a families file: {"base": {...}, "instruct": {...}, "note": optional}."""
    families = read_strict_json(Path(path), "--families_file")
    named = re.compile(r"[A-Za-z0-9][\w.-]*")
    if not isinstance(families, dict) or not all(named.fullmatch(key) for key in families):
        raise UserError(
            f"--families_file {path}: must be an object whose keys are letters, digits, '_', '.' "
            "and '-'"
        )
    if name not in families:
        raise UserError(f"--family {printable(name)}: unknown; {path} has {', '.join(families)}")
    family = families[name]
    for key in family if isinstance(family, dict) else ():
        if key not in (*SIDES, "note"):
            raise UserError(
                f"{path}: {name}.{printable(key)}: unknown; a family has base, instruct and note"
            )
    for side in SIDES:
        entry = family.get(side) if isinstance(family, dict) else None
        if not isinstance(entry, dict) or not isinstance(entry.get("model_id"), str):
            raise UserError(f"{path}: {name}.{side} must be an object with a model_id")
        for key, value in entry.items():
            if key not in FAMILY_KEYS or not isinstance(value, str):
                raise UserError(
                    f"{path}: {name}.{side}.{printable(key)}: allowed are texts for "
                    f"{', '.join(FAMILY_KEYS)}"
                )
        if entry.get("prompt_format", "raw") not in ("raw", "chat"):
            raise UserError(f"{path}: {name}.{side}.prompt_format must be raw or chat")
    return family
