"""What may be done to a model: the interventions of a plan file, checked before a model is touched.

    {"schema_version": 1, "source": {...}, "selection": [...], "interventions": [
      {"type": "head", "layer": 29, "head": 26, "method": "zero_out", "role": "candidate"}, ...]}

    type         method                                       folder
    head         zero_out half_out scale mean resample        sh_29_26_zero_out
    layer_heads  the same; head: null (all) or a list         ah_12_mean, ah_12_3-5_mean
    mlp          zero_out mean                                mlp_3_zero_out
    pattern      uniform random; head: one, a list or null    pattern_5_2_uniform, pattern_5_uniform
    patch        paired other_model; component head, mlp or   patch_5_2_paired, patch-mlp_5_paired,
                 layer                                        patch-layer_5_paired
    steer        add project_out                              steer_12_add_4, steer_12_project_out

source, selection and note say where the plan came from; analyze_results.py writes them, and
plan_source.py holds source against the model that is asked for. held_out are the ids of the prompts
that did not choose the heads.
"""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.files import read_strict_json

SCHEMA_VERSION = 1
ROOT_KEYS = ("schema_version", "source", "selection", "held_out", "note", "interventions")
HEAD_METHODS = Literal["zero_out", "half_out", "scale", "mean", "resample"]
FACTORS = {"zero_out": 0.0, "half_out": 0.5}  # what a head's or an MLP's output is multiplied by
FROM_OTHERS = ("resample", "paired", "other_model")  # activations of another prompt or model
# Methods that treat alike what prompts begin with alike, so that it is computed once. The others:
# random draws by prompt; resample and paired take another prompt's values; other_model takes those
# of a model in which nothing is proved to be alike.
ALIKE = (
    *(*FACTORS, "scale"),  # one factor for every token
    "mean",  # one mean a position
    "uniform",  # over the keys that a position sees
    *("add", "project_out"),  # one direction for every token
)
Index = Annotated[int, Field(ge=0, le=100_000)]
Heads = Annotated[list[Index], Field(min_length=1)]
Number = Annotated[float, Field(allow_inf_nan=False)]
MAX_NAME = 200  # bytes; file systems take 255


class Entry(BaseModel):
    """What every intervention has: the layer, what it is for, and a note that is only recorded."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    layer: Index
    role: Literal["candidate", "control"] = "candidate"
    control_for: str | list[str] | None = None
    note: str | None = None

    @property
    def head_list(self):
        """The heads that are named, [] where the edit takes all heads or no head."""
        head = getattr(self, "head", None)
        return [] if head is None else [head] if isinstance(head, int) else list(head)

    @property
    def place(self):
        """<type>_<layer>_<head>: what is edited, without how."""
        heads = "-".join(map(str, self.head_list))
        return "_".join(part for part in (self.prefix, str(self.layer), heads) if part)

    @property
    def change(self):
        """How it is edited: the method and its number."""
        return self.method

    @property
    def name(self):
        """The folder: <type>_<layer>_<head>_<method>."""
        return f"{self.place}_{self.change}"

    @property
    def targets(self):
        """The candidates that a control names; [] for one that is for every candidate."""
        return [self.control_for] if isinstance(self.control_for, str) else self.control_for or []

    def problem(self):
        """What is wrong between the fields, or None."""


class HeadEntry(Entry):
    type: Literal["head"]
    head: Index
    method: HEAD_METHODS
    factor: Number | None = None
    prefix: ClassVar[str] = "sh"
    component: ClassVar[str] = "head"

    @property
    def change(self):
        return f"scale_{self.factor:g}" if self.method == "scale" else self.method

    def problem(self):
        return needed(self, "factor", self.method == "scale", "a number")


class LayerHeadsEntry(HeadEntry):
    type: Literal["layer_heads"]
    head: Heads | None
    prefix: ClassVar[str] = "ah"


class MlpEntry(Entry):
    type: Literal["mlp"]
    method: Literal["zero_out", "mean"]
    prefix: ClassVar[str] = "mlp"
    component: ClassVar[str] = "mlp"


class PatternEntry(Entry):
    type: Literal["pattern"]
    head: Index | Heads | None
    method: Literal["uniform", "random"]
    prefix: ClassVar[str] = "pattern"


class PatchEntry(Entry):
    type: Literal["patch"]
    component: Literal["head", "layer", "mlp"] = "head"
    head: Index | Heads | None = None
    method: Literal["paired", "other_model"]
    source: Annotated[str, Field(min_length=1)] | None = None

    @property
    def prefix(self):
        return "patch" if self.component == "head" else f"patch-{self.component}"

    def problem(self):
        if self.component != "head" and self.head is not None:
            return f"head is {shown(self.head)}; component {self.component} takes no head"
        what = "a model id or a run folder"
        return needed(self, "source", self.method == "other_model", what)


class SteerEntry(Entry):
    type: Literal["steer"]
    method: Literal["add", "project_out"]
    alpha: Number | None = None
    prefix: ClassVar[str] = "steer"
    component: ClassVar[str] = "layer"

    @property
    def change(self):
        return f"add_{self.alpha:g}" if self.method == "add" else self.method

    def problem(self):
        return needed(self, "alpha", self.method == "add", "a number")


ENTRIES = {
    "head": HeadEntry,
    "layer_heads": LayerHeadsEntry,
    "mlp": MlpEntry,
    "pattern": PatternEntry,
    "patch": PatchEntry,
    "steer": SteerEntry,
}


def needed(entry, field, wanted, what):
    """What is wrong if a field is there although the method takes none, or the other way round."""
    given = getattr(entry, field) is not None
    if given == wanted:
        return None
    return f"method {entry.method} " + (f"needs {field}, {what}" if wanted else f"takes no {field}")


def read_held_out(path, flag="--config_file"):
    """Ids of the prompts that did not choose the heads of a plan file."""
    root = read_strict_json(Path(path), flag)
    ids = root.get("held_out") if isinstance(root, dict) else None
    if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
        raise UserError(f"{flag} {path}: held_out is missing; --held_out needs the prompts' ids")
    return ids


def read_plan(path, flag="--config_file"):
    """The entries of a plan file, each valid by itself and different from the others."""
    path = Path(path)
    root = read_strict_json(path, flag)
    where = f"{flag} {path}"
    if not isinstance(root, dict):
        raise UserError(
            f"{where}: the root is {shown(root)}; it must be an object with {', '.join(ROOT_KEYS)}"
        )
    for key in root:
        if key not in ROOT_KEYS:
            raise UserError(
                f"{where}: unknown key {printable(key)!r}; allowed are {', '.join(ROOT_KEYS)}"
            )
    if type(root.get("schema_version")) is not int or root["schema_version"] != SCHEMA_VERSION:
        raise UserError(
            f"{where}: schema_version is {shown(root.get('schema_version'))}; this version reads "
            f"{SCHEMA_VERSION}"
        )
    if root.get("interventions") == [] and isinstance(root.get("note"), str):
        raise UserError(
            f"{where}: interventions is an empty list; its note says: {printable(root['note'])}"
        )
    return parse_entries(root.get("interventions"), where)


def parse_entries(items, where):
    """The entries of the list `interventions`; `where` begins every message."""
    if not isinstance(items, list) or not items:
        raise UserError(
            f"{where}: interventions is {shown(items)}; it must be a list of at least one entry"
        )
    entries = [parse_entry(item, f"{where}: interventions[{i}]") for i, item in enumerate(items)]
    names = [entry.name for entry in entries]
    for i, (entry, name) in enumerate(zip(entries, names, strict=True)):
        place = f"{where}: interventions[{i}]"
        if name in names[:i]:
            raise UserError(f"{place} and [{names.index(name)}] are both {name}; keep one of them")
        if len(name) > MAX_NAME:
            raise UserError(
                f"{place}.head lists {len(entry.head_list)} heads, too many for the name of a "
                "folder; head: null takes all heads of the layer"
            )
        for target in entry.targets:
            if not any(names_candidate(entry, target, other) for other in entries):
                known = ", ".join(e.name for e in entries if e.role == "candidate")
                raise UserError(
                    f"{place}.control_for is {shown(target)}: no candidate of this plan has that "
                    f"name and method {entry.change}; its candidates are {known or 'none'}"
                )
    return entries


def parse_entry(item, where):
    """One entry, or a UserError with the first field that is wrong."""
    if not isinstance(item, dict):
        raise UserError(f"{where} is {shown(item)}; it must be an object, groups cannot be nested")
    kind = item.get("type")
    if not isinstance(kind, str) or kind not in ENTRIES:
        raise UserError(f"{where}.type is {shown(kind)}; allowed are {', '.join(ENTRIES)}")
    fields = ENTRIES[kind].model_fields
    for key in item:  # not left to pydantic, which stops at half a surrogate pair
        if key not in fields:
            raise UserError(
                f"{where}: unknown key {printable(key)!r} (groups cannot be nested); type {kind} "
                f"has {', '.join(fields)}"
            )
    try:
        entry = ENTRIES[kind].model_validate(item)
    except ValidationError as error:
        raise UserError(f"{where}{describe_error(error.errors()[0], kind)}") from error
    problem = entry.problem()
    if problem is None and entry.control_for is not None and entry.role != "control":
        problem = "control_for is only for entries whose role is control"
    if problem is None and len(set(entry.head_list)) < len(entry.head_list):
        problem = f"head is {shown(entry.head_list)}; a head is listed twice"
    if problem:
        raise UserError(f"{where}: {problem}")
    return entry


def describe_error(error, kind):
    """pydantic's first complaint as field, value and what is allowed."""
    field = str(error["loc"][0])
    if error["type"] == "missing":
        return f".{field} is missing; type {kind} needs it"
    value = f".{field} is {shown(error['input'])}"
    if "literal" in error["type"]:
        allowed = get_args(ENTRIES[kind].model_fields[field].annotation)
        return f"{value}; allowed are {', '.join(map(str, allowed))}"
    if field == "layer" or (field == "head" and kind == "head"):
        return f"{value}; it must be a whole number from 0"
    if field == "head":
        one = "" if kind == "layer_heads" else ", or one"
        return f"{value}; it must be null or a list of whole numbers from 0{one}"
    return f"{value}: {printable(error['msg'])}"


def shown(value):
    """A JSON value for a message, shortened."""
    if value is None:
        return "null or missing"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"the list {printable(value)[:60]}" if value else "an empty list"
    return repr(printable(value)[:60]) if isinstance(value, str) else str(value).lower()


def names_candidate(control, target, candidate):
    """True if `target`, one of a control's targets, means this candidate.

    It is the candidate's folder name, or that without the method (sh_29_26) where candidate and
    control are edited in the same way.
    """
    if candidate.role != "candidate":
        return False
    same = candidate.place if control.change == candidate.change else candidate.name
    return target in (candidate.name, same)


def check_against_model(entries, n_layers, n_heads, model_id):
    """Refuse the first entry whose layer or head the model lacks; no forward pass is needed."""
    for i, entry in enumerate(entries):
        head = next((head for head in entry.head_list if head >= n_heads), None)
        if entry.layer >= n_layers or head is not None:
            what = f"layer is {entry.layer}" if entry.layer >= n_layers else f"head is {head}"
            raise UserError(
                f"interventions[{i}].{what}: {printable(model_id)} has layers 0 to {n_layers - 1} "
                f"and heads 0 to {n_heads - 1}; analyze_results.py writes "
                "ablation_candidates.json with this model's own heads"
            )
