"""model_families.json: the base and instruct models of a family, and the flags they stand for."""

import re
from pathlib import Path

from rolecircuits.inputs.arguments import DEFAULT_RESULTS
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.files import read_strict_json

SIDES = ("base", "instruct")
RUNS = {"instruct": "latest", "base": "latest_base"}  # in this order: the base model is edited next
SHARED = "prompts prompts_per_category dtype device device_map batch_size seed".split()
FAMILIES_FILE = Path(__file__).resolve().parents[2] / "model_families.json"
FAMILY_KEYS = ("model_id", "revision", "prompt_format", "system_prompt")


def load_family(path, name):
    """One family of a file, checked: {"base": {...}, "instruct": {...}, "note": optional}."""
    families = read_strict_json(Path(path), "--families_file")
    named = isinstance(families, dict) and all(
        re.fullmatch(r"[A-Za-z0-9][\w.-]*", key) for key in families
    )
    if not named:
        raise UserError(
            f"--families_file {path}: must be an object whose keys are letters, digits, "
            "'_', '.' and '-'"
        )
    if name not in families:
        raise UserError(f"--family {printable(name)}: unknown; {path} has {', '.join(families)}")
    family = families[name] if isinstance(families[name], dict) else {}
    for key in family:
        if key not in (*SIDES, "note"):
            raise UserError(
                f"{path}: {name}.{printable(key)}: unknown; "
                f"a family has {', '.join(SIDES)} and note"
            )
    for side in SIDES:
        model = family.get(side)
        if not isinstance(model, dict) or not isinstance(model.get("model_id"), str):
            raise UserError(f"{path}: {name}.{side} must be an object with a model_id")
        for key, value in model.items():
            if key not in FAMILY_KEYS or not isinstance(value, str):
                raise UserError(
                    f"{path}: {name}.{side}.{printable(key)}: "
                    f"allowed are texts for {', '.join(FAMILY_KEYS)}"
                )
        if model.get("prompt_format", "raw") not in ("raw", "chat"):
            raise UserError(f"{path}: {name}.{side}.prompt_format must be raw or chat")
    return family


def stage_flags(stage, family, args, name):
    """The flags that a stage's script would get on its own command line for this family.

    stage  a run ("base", "instruct": activation_analysis.py), or the edits of the base model
    args   those of run_pipeline.py
    """
    flags = {"output_dir": Path(DEFAULT_RESULTS, name)}
    flags |= family[stage if stage in RUNS else "base"]
    flags |= {flag: getattr(args, flag) for flag in SHARED if getattr(args, flag) is not None}
    if stage in RUNS:
        flags |= {"output_type": RUNS[stage], "raw": args.raw}
    return [f"--{flag}={value}" for flag, value in flags.items()]  # a value may begin with a hyphen
