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

source, selection and note say where the plan came from; analyze_results.py writes them, nothing
here reads them.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from rolecircuits.inputs.arguments import check_text
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.files import read_strict_json

SCHEMA_VERSION = 1
ROOT_KEYS = ("schema_version", "source", "selection", "note", "interventions")
MAX_NAME = 200  # bytes; file systems take 255
FACTORS = {"zero_out": 0.0, "half_out": 0.5}  # what a head's or an MLP's output is multiplied by
FROM_OTHERS = ("resample", "paired", "other_model")  # activations of another prompt or model

INDEX, NUMBER, TEXT = "a whole number from 0", "a number", "a text"
NAMES, HEADS = "a name or a list of names", "null or a list of whole numbers from 0"
HEAD_OR_HEADS = f"{HEADS}, or one"
# Of each field: the values that it may have, or words for them, and its default if it has one.
ALL_TYPES = {
    "layer": (INDEX,),
    "role": (("candidate", "control"), "candidate"),
    "control_for": (NAMES, None),
    "note": (TEXT, None),
}
HEAD_METHODS = (("zero_out", "half_out", "scale", "mean", "resample"),)
TYPES = {
    "head": {"head": (INDEX,), "method": HEAD_METHODS, "factor": (NUMBER, None)},
    "layer_heads": {"head": (HEADS,), "method": HEAD_METHODS, "factor": (NUMBER, None)},
    "mlp": {"method": (("zero_out", "mean"),)},
    "pattern": {"head": (HEAD_OR_HEADS,), "method": (("uniform", "random"),)},
    "patch": {
        "component": (("head", "layer", "mlp"), "head"),
        "head": (HEAD_OR_HEADS, None),
        "method": (("paired", "other_model"),),
        "source": (TEXT, None),
    },
    "steer": {"method": (("add", "project_out"),), "alpha": (NUMBER, None)},
}
TYPES = {kind: ALL_TYPES | {"type": ((kind,),)} | own for kind, own in TYPES.items()}
PREFIXES = {"head": "sh", "layer_heads": "ah"}  # of folders, where it is not the type itself
COMPONENTS = {"head": "head", "layer_heads": "head", "mlp": "mlp", "steer": "layer"}
# The methods that need a field, which no other method of the type takes, and what it holds.
NEEDED = {
    "factor": ("scale", "a number"),
    "source": ("other_model", "a model id or a run folder"),
    "alpha": ("add", "a number"),
}


@dataclass(frozen=True)
class Entry:
    """One intervention of a plan; a field that its type does not have is None."""

    type: str
    layer: int
    method: str
    head: int | list | None = None
    component: str | None = None
    factor: float | None = None
    alpha: float | None = None
    source: str | None = None
    role: str = "candidate"
    control_for: str | list | None = None
    note: str | None = None

    def plain(self):
        """The fields of its type as JSON data, from which `parse_entry` makes it again."""
        return {name: getattr(self, name) for name in TYPES[self.type]}

    @property
    def head_list(self):
        """The heads that are named, [] where the edit takes all heads or no head."""
        return [] if self.head is None else [self.head] if type(self.head) is int else self.head

    @property
    def place(self):
        """<type>_<layer>_<head>: what is edited, without how."""
        prefix = PREFIXES.get(self.type, self.type)
        if self.type == "patch" and self.component != "head":
            prefix += f"-{self.component}"
        heads = ["-".join(map(str, self.head_list))] if self.head_list else []
        return "_".join([prefix, str(self.layer), *heads])

    @property
    def change(self):
        """How it is edited: the method and its number."""
        number = {"scale": self.factor, "add": self.alpha}.get(self.method)
        return self.method if number is None else f"{self.method}_{number:g}"

    @property
    def name(self):
        """The folder: <type>_<layer>_<head>_<method>."""
        return f"{self.place}_{self.change}"

    @property
    def targets(self):
        """The candidates that a control names; [] for one that is for every candidate."""
        return [self.control_for] if isinstance(self.control_for, str) else self.control_for or []


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
    if not isinstance(kind, str) or kind not in TYPES:
        raise UserError(f"{where}.type is {shown(kind)}; allowed are {', '.join(TYPES)}")
    fields = TYPES[kind]
    for name in item:
        if name not in fields:
            raise UserError(
                f"{where}: unknown key {printable(name)!r} (groups cannot be nested); type {kind} "
                f"has {', '.join(fields)}"
            )
    values = {"component": COMPONENTS.get(kind)}
    for name, (allowed, *default) in fields.items():
        if name not in item and not default:
            raise UserError(f"{where}.{name} is missing; type {kind} needs it")
        value = values[name] = item.get(name, *default)
        if not (default and value is default[0]):
            check_field(value, allowed, f"{where}.{name}")
        if allowed == NUMBER and value is not None:
            values[name] = float(value)
    entry = Entry(**values)
    if problem := problem_between_fields(entry):
        raise UserError(f"{where}: {problem}")
    return entry


def check_field(value, allowed, where):
    """Refuse a value that is not among `allowed` or not what these words say."""
    if isinstance(allowed, tuple):
        if value not in allowed:
            raise UserError(f"{where} is {shown(value)}; allowed are {', '.join(allowed)}")
        return
    heads = value is None or (isinstance(value, list) and value and all(map(is_index, value)))
    fits = {
        INDEX: is_index(value),
        HEADS: heads,
        HEAD_OR_HEADS: heads or is_index(value),
        NUMBER: type(value) in (int, float) and abs(value) <= sys.float_info.max,
        TEXT: isinstance(value, str),
        NAMES: isinstance(value, str)
        or (isinstance(value, list) and all(isinstance(name, str) for name in value)),
    }
    if not fits[allowed]:
        raise UserError(f"{where} is {shown(value)}; it must be {allowed}")
    if allowed == TEXT:
        check_text(value, where)


def is_index(value):
    return type(value) is int and 0 <= value <= 100_000


def problem_between_fields(entry: Entry):
    """What is wrong about an entry whose fields are right one by one, or None."""
    if entry.type == "patch" and entry.component != "head" and entry.head is not None:
        return f"head is {shown(entry.head)}; component {entry.component} takes no head"
    for field, (method, what) in NEEDED.items():
        given = getattr(entry, field) is not None
        if given != (entry.method == method):
            takes = f"takes no {field}" if given else f"needs {field}, {what}"
            return f"method {entry.method} {takes}"
    if entry.control_for is not None and entry.role != "control":
        return "control_for is only for entries whose role is control"
    if len(set(entry.head_list)) < len(entry.head_list):
        return f"head is {shown(entry.head_list)}; a head is listed twice"
    return None


def shown(value):
    """A JSON value for a message, shortened."""
    if value is None:
        return "null or missing"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"the list {printable(value)[:60]}" if value else "an empty list"
    return repr(printable(value)[:60]) if isinstance(value, str) else str(value).lower()


def names_candidate(control: Entry, target, candidate: Entry):
    """True if `target`, one of a control's targets, means this candidate.

    It is the candidate's folder name, or that without the method (sh_29_26) where candidate and
    control are edited in the same way.
    """
    if candidate.role != "candidate":
        return False
    same = candidate.place if control.change == candidate.change else candidate.name
    return target in (candidate.name, same)


def controls_of(candidate: Entry, entries: list[Entry]):
    """The controls of a candidate: those that name it, and unnamed ones of its type and method."""
    kind = (candidate.type, candidate.change)
    return [
        entry
        for entry in entries
        if entry.role == "control"
        and (
            any(names_candidate(entry, target, candidate) for target in entry.targets)
            or (not entry.targets and (entry.type, entry.change) == kind)
        )
    ]


def check_against_model(entries: list[Entry], n_layers, n_heads, model_id):
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


def draw_controls(entries: list[Entry], n_heads, per_candidate=2, seed=0):
    """Control entries for a plan without any: the candidates' edit on random heads of the layer.

    The same heads are controls of every method of a candidate (zero_out, half_out) and of its
    neighbours; no candidate of the layer is drawn. An edit of a whole layer, an MLP or the
    residual has no matched control.
    """
    import numpy as np  # here: scripts import this module before they answer --help

    drawn = {}
    for entry in entries:
        size = len(entry.head_list)
        taken = {head for e in entries if e.layer == entry.layer for head in e.head_list}
        free = [head for head in range(n_heads) if head not in taken]
        rng = np.random.default_rng([seed, entry.layer, *entry.head_list])
        for _ in range(per_candidate if size else 0):
            if size > len(free):
                break
            heads = sorted(rng.choice(free, size, replace=False).tolist())
            if size == 1:
                free.remove(heads[0])
            head = heads if isinstance(entry.head, list) else heads[0]
            new = {"head": head, "role": "control", "control_for": [entry.name], "note": None}
            control = replace(entry, **new)
            shared = drawn.setdefault(control.name, control)
            if entry.name not in shared.control_for:
                shared.control_for.append(entry.name)
    return list(drawn.values())
