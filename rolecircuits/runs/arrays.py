"""The arrays of attention.npz, their shapes and ranges, and the run that holds them in memory.

Schema 2 added what a crossed prompt set and the masses of the final query need (ADDED). A run of
schema 1 is read as ever: its frames are first words, it has no slots, and those masses are None.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rolecircuits.inputs.categories import check_category, first_word, order_categories
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.runs.npz import read_npz
from rolecircuits.runs.record import prompt_set_of

ARRAYS = {
    "category": ("U", ("prompt",)),
    "prompt_id": ("U", ("prompt",)),
    "pair_id": ("i", ("prompt",)),
    "n_tokens": ("i", ("prompt",)),
    "span": ("i", ("prompt", 2)),
    "entropy": ("f", ("prompt", "layer", "head", "query")),
    "entropy_sinkfree": ("f", ("prompt", "layer", "head", "query")),
    "sink_mass": ("f", ("prompt", "layer", "head", "query")),
    "visible_keys": ("i", ("layer", "query")),
    "first_mass": ("f", ("prompt", "layer", "head")),
    "last_mass": ("f", ("prompt", "layer", "head")),
    "edge_mass": ("f", ("prompt", "layer", "head", 2)),
    "edge_tokens": ("i", ("prompt",)),
    "frame": ("U", ("prompt",)),
    "filler": ("U", ("prompt",)),
    "slot": ("i", ("prompt", 2)),
    "slot_mass": ("f", ("prompt", "layer", "head")),
    "slot_uniform": ("f", ("prompt", "layer")),
    "segment": ("U", ("segment",)),
    "segment_mass": ("f", ("prompt", "layer", "head", "segment")),
    "segment_uniform": ("f", ("prompt", "layer", "segment")),
    "final_row": ("f", ("prompt", "layer", "head", "key")),
}
ADDED = tuple(ARRAYS)[-9:]  # in schema 2
PROMPT_ARRAYS = tuple(name for name, (_, axes) in ARRAYS.items() if axes[0] == "prompt")
PROBABILITIES = ("sink_mass", "first_mass", "last_mass", "edge_mass")
PROBABILITIES_ADDED = ("segment_mass", "segment_uniform", "final_row")
OF_SLOTS = ("slot_mass", "slot_uniform")  # NaN where a prompt has no slot


@dataclass
class Run:
    """A complete run, loaded: its config, its prompts, and the arrays of attention.npz (ARRAYS)."""

    path: Path
    config: dict
    category: np.ndarray
    prompt_id: np.ndarray
    pair_id: np.ndarray
    n_tokens: np.ndarray
    span: np.ndarray
    entropy: np.ndarray
    entropy_sinkfree: np.ndarray
    sink_mass: np.ndarray
    visible_keys: np.ndarray
    first_mass: np.ndarray
    last_mass: np.ndarray
    edge_mass: np.ndarray
    edge_tokens: np.ndarray
    frame: np.ndarray
    filler: np.ndarray
    slot: np.ndarray
    slot_mass: np.ndarray | None = None
    slot_uniform: np.ndarray | None = None
    segment: np.ndarray | None = None
    segment_mass: np.ndarray | None = None
    segment_uniform: np.ndarray | None = None
    final_row: np.ndarray | None = None
    prompts: list = field(default_factory=list)

    @property
    def n_layers(self):
        return self.entropy.shape[1]

    @property
    def n_heads(self):
        return self.entropy.shape[2]

    @property
    def prompt_format(self):
        return self.config["prompts"]["format"]

    @property
    def crossed(self):
        """Whether every frame holds every category, so that frames are the unit of inference."""
        return bool(self.config["prompts"].get("crossed"))

    @property
    def has_slots(self):
        """Whether the final query's attention on the slot of every prompt is known."""
        return self.slot_mass is not None and bool((self.slot[:, 0] >= 0).all())

    @property
    def name(self):
        """Name of its folder; of an edited run, below the name of its intervention run."""
        edited = (self.path.parent / "manifest.json").is_file()
        return f"{self.path.parent.name}/{self.path.name}" if edited else self.path.name

    @property
    def label(self):
        """Model, format and edit, for titles and tables, and which categories have other names."""
        named = f"{printable(self.config['model']['id'])}, {self.prompt_format} prompts"
        named += f", {self.edit}" if self.edit else ""
        roles = self.config.get("roles") or {}
        return "; ".join([named, *(f"{role} = {printable(name)}" for role, name in roles.items())])

    @property
    def edit(self):
        """What was done to the model, "zero_out of head 29/26", or None."""
        entry = self.config.get("intervention")
        if not entry:
            return None
        head = entry.get("head")
        heads = "-".join(map(str, head)) if isinstance(head, list) else head
        place = f"{entry['layer']}" if head is None else f"{entry['layer']}/{heads}"
        return printable(f"{entry['method']} of {entry['type']} {place}")

    @property
    def facts(self):
        """{column: value} by which every row of a CSV says which run it is of."""
        facts = facts_of(self.config, self.name if self.path else "")
        return facts | ({"edit": self.edit} if self.edit else {})

    @property
    def prompt_set(self):
        """What the prompt set was called when the run was made, a file without its folder."""
        return prompt_set_of(self.config)

    @property
    def counts(self):
        """{category: number of prompts} of the categories that have any, in the usual order."""
        names = order_categories(self.category.tolist())
        return {name: int((self.category == name).sum()) for name in names}

    def rename(self, roles):
        """The same run with categories under other names, which its label says.

        roles  {name: new name}, or None
        """
        if not roles:
            return self
        present = ", ".join(map(printable, self.counts))
        for name, role in roles.items():
            if name not in self.counts:
                raise UserError(
                    f"--roles {role}={printable(name)}: {self.path} has no such category; it has "
                    f"{present}"
                )
            if role in self.counts and role not in roles:
                raise UserError(
                    f"--roles {role}={printable(name)}: {self.path} has a {role} itself"
                )
        names = np.array([roles.get(name, name) for name in self.category.tolist()])
        rows = [
            row | {"category": roles.get(row["category"], row["category"])} for row in self.prompts
        ]
        config = self.config | {"roles": {role: name for name, role in roles.items()}}
        return dataclasses.replace(self, config=config, category=names, prompts=rows)

    def take(self, rows):
        """The same run with only the prompts at these positions, in this order."""
        rows = np.asarray(rows, dtype=int)
        arrays = {name: getattr(self, name) for name in PROMPT_ARRAYS}
        arrays = {name: array[rows] for name, array in arrays.items() if array is not None}
        return dataclasses.replace(self, prompts=[self.prompts[row] for row in rows], **arrays)


def facts_of(config, name):
    """{column: value} of the first columns of a CSV: model, set, format, and run.

    name  of the run's folder; of a table inside the run, which has no name yet, what the run is
    """
    facts = {"model": config["model"]["id"], "set": prompt_set_of(config)}
    return facts | {"format": config["prompts"]["format"], "run": name}


def read_arrays(path, schema):
    """The arrays of an attention.npz, checked: names, shapes, dtypes and ranges."""
    arrays = read_npz(path, [name for name in ARRAYS if schema > 1 or name not in ADDED])
    check_arrays(path, arrays)
    return arrays


def assemble_run(folder, config, prompts, arrays):
    """The Run; one of schema 1 gets frame (first word), filler and slot from its prompts.jsonl."""
    if "frame" not in arrays:
        frame = np.array([first_word(row["text"]) for row in prompts])
        slots = np.full((len(frame), 2), -1)
        arrays = arrays | {"frame": frame, "filler": np.full(len(frame), ""), "slot": slots}
    run = Run(folder, config, prompts=prompts, **arrays)
    if run.crossed != bool((run.slot[:, 0] >= 0).all()):
        raise UserError(f"{folder}: its config and its slots disagree whether the set is crossed")
    if (run.visible_keys[:, 0] > 1).any() and not config["model"].get("learned_sinks"):
        raise UserError(
            f"{folder / 'attention.npz'}: visible_keys is outside 1 to query + 1, as only learned "
            "sinks may bring about"
        )
    return run


def check_arrays(path, arrays):
    """Shapes agree with one another, dtypes are plain, values are inside their range."""
    if arrays["entropy"].ndim != 4:
        raise UserError(
            f"{path}: entropy has {arrays['entropy'].ndim} axes, expected 4 (prompt, layer, head, "
            "query)"
        )
    sizes = dict(zip(("prompt", "layer", "head", "query"), arrays["entropy"].shape, strict=True))
    sizes |= {"key": sizes["query"], "segment": len(arrays.get("segment", ()))}
    for name, (kind, axes) in ARRAYS.items():
        if name not in arrays:
            continue
        array, expected = arrays[name], tuple(sizes.get(axis, axis) for axis in axes)
        if array.shape != expected or array.dtype.kind != kind:
            raise UserError(
                f"{path}: {name} is {array.dtype} {array.shape}, expected "
                f"{'/'.join(map(str, axes))} = {expected} of kind {kind}"
            )
    if 0 in arrays["entropy"].shape:
        raise UserError(f"{path}: holds no prompts, layers, heads or rows")
    for name in sorted(set(arrays["category"].tolist())):
        check_category(name, path)
    _check_lengths(path, arrays, sizes["query"])
    _check_values(path, arrays, sizes["query"])


def _check_lengths(path, arrays, n_query):
    """Spans lie inside their prompt, and a row sees at least itself and nothing that follows."""
    n_tokens, (start, stop) = arrays["n_tokens"], arrays["span"].T
    ordered = (start >= 0) & (start < stop) & (stop <= n_tokens) & (n_tokens <= n_query)
    if not ordered.all():
        prompt = int(np.argmin(ordered))
        raise UserError(f"{path}: span or n_tokens of prompt {prompt} is out of range")
    edge = arrays["edge_tokens"]
    if ((edge < 0) | (edge > (stop - start) // 2)).any():
        raise UserError(f"{path}: edge_tokens is outside 0 to half of the prompt's own tokens")
    if "slot" in arrays:
        first, last = arrays["slot"].T
        none = (first == -1) & (last == -1)
        if not (none | ((start <= first) & (first <= last) & (last <= stop))).all():
            raise UserError(f"{path}: a slot lies outside its prompt")
    visible = arrays["visible_keys"]
    keys = visible - (visible[..., :1] > 1)  # without a learned sink, the second key of row 0
    if (visible < 1).any() or (keys > np.arange(1, n_query + 1)).any():
        raise UserError(f"{path}: visible_keys is outside 1 to query + 1")


def _check_values(path, arrays, n_query):
    """Inside a prompt nothing is NaN, masses are probabilities, and entropies are possible."""
    real = np.arange(n_query) < arrays["n_tokens"][:, None]
    probabilities = [name for name in PROBABILITIES + PROBABILITIES_ADDED if name in arrays]
    for name in ("entropy", *probabilities):
        rows = ARRAYS[name][1][-1] == "query"
        values = arrays[name].transpose(0, 3, 1, 2)[real] if rows else arrays[name]
        if not np.isfinite(values).all():
            raise UserError(f"{path}: {name} is NaN or infinite inside a prompt")
    for name in probabilities + [name for name in OF_SLOTS if name in arrays]:
        values = arrays[name][~np.isnan(arrays[name])]
        if ((values < -1e-3) | (values > 1 + 1e-3)).any():
            raise UserError(f"{path}: {name} holds a probability outside [0, 1]")
    bound = np.log(arrays["visible_keys"])[None, :, None, :] + 1e-2
    for name in ("entropy", "entropy_sinkfree"):
        if ((arrays[name] < 0) | (arrays[name] > bound)).any():
            raise UserError(f"{path}: {name} is outside 0 to ln(visible keys)")
