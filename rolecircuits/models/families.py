"""model_families.json: the base and instruct models of a family, and the flags they stand for.

{"NAME": {"base": {"model_id": ...}, "instruct": {"model_id": ...}, "note": TEXT,
          "prompts": {SET: prompts a category, or null for all},
          "shape": {"L": layers, "H": heads, ...}, "cost": {"weights_gb", "peak_gb", "minutes"}}}

All but base and instruct may be missing. The shape is that of both models, and the cost what
docs/SCALE.md makes of it: benchmarks/scale.py --families prints it.
"""

import re
from argparse import Namespace  # noqa: TID251  (a type)
from dataclasses import dataclass, field
from pathlib import Path

from rolecircuits.inputs.arguments import (
    DEFAULT_RESULTS,
    LATEST_BASE_GENERATION,
    LATEST_GENERATION,
    LATEST_INTERVENTION,
    LATEST_RUNS,
)
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.files import read_strict_json
from rolecircuits.inputs.prompt_sets import is_built_in

SIDES = ("base", "instruct")
SHARED = "dtype device device_map batch_size seed".split()
PROMPT_SETS = {"original": None, "crossed": None}  # of a family that names none
FAMILIES_FILE = Path(__file__).resolve().parents[2] / "model_families.json"
FAMILY_KEYS = ("model_id", "revision", "prompt_format", "system_prompt", "chat_template")
ANSWERS = {"base": "base_answers", "instruct": "instruct_answers"}  # the stage, by side
LINKS = {side: LATEST_RUNS[side] for side in SIDES} | {
    "edits": LATEST_INTERVENTION,
    "base_answers": LATEST_BASE_GENERATION,
    "instruct_answers": LATEST_GENERATION,
}
PREFIXES = dict.fromkeys(SIDES, "run") | {"edits": "intervention"}
PREFIXES |= dict.fromkeys(ANSWERS.values(), "generation")
ANSWER_TOKENS = 12  # of an answer at most: enough to see whom it is about
SHAPE = ("L", "H", "K", "h", "d", "f", "V")  # as benchmarks/scale.py names them
SHAPE_KINDS = ("tied", "gated")  # embeddings, MLP; true or false, may be missing
COST = ("weights_gb", "peak_gb", "minutes")
OUTPUTS = ("figures", "analysis_results", "comparison_results")


@dataclass
class Study:
    """A family on one prompt set: the flags of this script and of each stage.

    folder   NAME, or NAME/SET, below results, figures and tables
    payload  {"flags", "prompts"}: what `family_task` needs
    crossed  whether the prompt set is
    found    {side: what analyze_results.analyze returns, "comparison": its summary}, once made
    """

    folder: str
    args: Namespace
    stages: dict
    payload: dict
    label: str = "original"
    crossed: bool = False
    found: dict = field(default_factory=dict)

    def __post_init__(self):
        folder = Path(DEFAULT_RESULTS, self.folder)
        self.links = {stage: folder / link for stage, link in LINKS.items()}
        self.runs = {side: self.links[side] for side in SIDES}

    def list_places(self, names):
        """Lines that say where everything lies; names {side: the folder of its run}."""
        lines, (figures, _, comparison) = [], (Path(root, self.folder) for root in OUTPUTS)
        for side, link in self.runs.items():
            where = f"{printable(link.parent / names[side])}/"
            if not self.args.skip_visualization:
                where += f"   figures {figures / side}/"
            lines.append(f"{self.label}, {side}: {where}")
        if "comparison" in self.found:
            lines.append(f"{self.label}, comparison: {comparison}/")
        return lines

    def list_choices(self):
        """Rows of multiverse.csv of both runs."""
        found = {side: self.found.get(side, {}).get("multiverse", ()) for side in SIDES}
        rows = [(side, row) for side, own in found.items() for row in own]
        return [row | {"side": side, "set": self.label} for side, row in rows]


def add_family_arguments(parser):
    """--family and --list, --families_file, --prompts."""
    what = parser.add_mutually_exclusive_group(required=True)
    names = {"dest": "families", "help": "names in model_families.json: demo, smollm2, ..."}
    what.add_argument("--family", nargs="+", **names)
    listed = "show the families that there are, and what each takes; nothing is run"
    what.add_argument("--list", action="store_true", help=listed)
    own = "a file of that form (default: model_families.json)"
    parser.add_argument("--families_file", default=str(FAMILIES_FILE), help=own)
    sets = "one set or several, each a name or file (default: those of the family)"
    parser.add_argument("--prompts", nargs="+", metavar="NAME|FILE", help=sets)


def load_families(path):
    """{name: family} of a file, each checked, with its "prompts"."""
    families = _read_families(path)
    return {name: _check_family(path, name, families[name]) for name in families}


def load_family(path, name):
    """One family of a file, checked, with its "prompts"; note, shape and cost may be missing."""
    families = _read_families(path)
    if name not in families:
        raise UserError(f"--family {printable(name)}: unknown; {path} has {', '.join(families)}")
    return _check_family(path, name, families[name])


def _read_families(path):
    """The object of a families file, its names checked."""
    families = read_strict_json(Path(path), "--families_file")
    named = isinstance(families, dict) and all(
        re.fullmatch(r"[A-Za-z0-9][\w.-]*", key) for key in families
    )
    if not named:
        raise UserError(
            f"--families_file {path}: must be an object whose keys are letters, digits, "
            "'_', '.' and '-'"
        )
    return families


def _check_family(path, name, family):
    """The family, with its "prompts"."""
    family = family if isinstance(family, dict) else {}
    for key in family:
        if key not in (*SIDES, "prompts", "note", "shape", "cost"):
            raise UserError(
                f"{path}: {name}.{printable(key)}: unknown; "
                f"a family has {', '.join(SIDES)}, prompts, note, shape and cost"
            )
    if not isinstance(family.get("note", ""), str):
        raise UserError(f"{path}: {name}.note must be a text")
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
    if "shape" in family:
        _check_numbers(f"{path}: {name}.shape", family["shape"], SHAPE, SHAPE_KINDS)
    if "cost" in family:
        _check_numbers(f"{path}: {name}.cost", family["cost"], COST)
    return family | {"prompts": _check_sets(f"{path}: {name}.prompts", family.get("prompts"))}


def _check_numbers(where, given, names, kinds=()):
    """Refuse what is not an object of numbers above 0, the names, and truths, the kinds."""
    known = isinstance(given, dict) and set(names) <= set(given) <= {*names, *kinds}
    if not known or not all(
        type(value) is bool if name in kinds else type(value) in (int, float) and 0 < value < 1e9
        for name, value in given.items()
    ):
        also = f", and true or false for {', '.join(kinds)}" if kinds else ""
        raise UserError(f"{where} must be an object of numbers above 0: {', '.join(names)}{also}")


def _check_sets(where, sets):
    """{prompt set: prompts a category or None} of a family, checked."""
    if sets is None:
        return PROMPT_SETS
    if not isinstance(sets, dict) or not sets:
        raise UserError(f"{where} must be an object {{prompt set: prompts a category, or null}}")
    for source, n in sets.items():
        if n is not None and (type(n) is not int or n < 1):
            raise UserError(f"{where}.{printable(source)}: must be a whole number above 0, or null")
    return sets


def report_path(name):
    """Where the report of a family lies."""
    return Path("analysis_results", name, "report.html")


def edited_study(studies):
    """Position of the Study whose base run is edited: the first crossed set, else the first."""
    return next((i for i, study in enumerate(studies) if study.crossed), 0)


def list_sets(family, asked, n):
    """{label: (prompt set, prompts a category or None)} of a family, in order.

    A label is the name of a folder: crossed_de of crossed:de, no colon.
    asked, n  --prompts and --prompts_per_category, each None for what the family says
    """
    sets = dict.fromkeys(asked) if asked else family["prompts"]
    labels = [
        source.replace(":", "_") if is_built_in(source) else Path(source).stem for source in sets
    ]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"--prompts: two sets are called {printable(label)}; rename a file")
        if label in (*SIDES, "intervention"):
            raise UserError(f"--prompts {printable(label)}: a folder is called so; rename the file")
    sizes = [(source, n or of_set) for source, of_set in sets.items()]
    return dict(zip(labels, sizes, strict=True))


def stage_flags(stage, family, args, folder, prompts=(None, None)):
    """The flags that a stage's script would get on its own command line for this family.

    stage    a run ("base", "instruct": activation_analysis.py), the "edits" of the base model, or
             the answers of a side (ANSWERS: experiment.py)
    args     those of run_pipeline.py
    folder   of this family and prompt set, below the results
    prompts  (prompt set, prompts a category), each None for the script's default
    """
    flags = {"output_dir": Path(DEFAULT_RESULTS, folder)}
    flags |= family["instruct" if stage in ("instruct", ANSWERS["instruct"]) else "base"]
    named = zip(("prompts", "prompts_per_category"), prompts, strict=True)
    flags |= {flag: value for flag, value in named if value is not None}
    flags |= {flag: getattr(args, flag) for flag in SHARED if getattr(args, flag) is not None}
    if stage in SIDES:
        flags |= {"output_type": stage, "raw": args.raw}
    if stage in ANSWERS.values():
        flags |= {"max_tokens": ANSWER_TOKENS}
    return [f"--{flag}={value}" for flag, value in flags.items()]  # a value may begin with a hyphen
