"""The arrays of attention.npz, their shapes and ranges, and the run that holds them in memory."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rolecircuits.inputs.categories import CATEGORIES
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.runs.npz import read_npz

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
}
PROBABILITIES = ("sink_mass", "first_mass", "last_mass", "edge_mass")


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
    def label(self):
        """Model and format, for titles and tables."""
        return f"{printable(self.config['model']['id'])}, {self.prompt_format} prompts"

    @property
    def counts(self):
        """{category: number of prompts} of the categories that have any, in the usual order."""
        return {name: int(n) for name in CATEGORIES if (n := (self.category == name).sum())}

    def take(self, rows):
        """The same run with only the prompts at these positions, in this order."""
        rows = np.asarray(rows, dtype=int)
        of_prompts = [name for name, (_, axes) in ARRAYS.items() if axes[0] == "prompt"]
        arrays = {name: getattr(self, name)[rows] for name in of_prompts}
        return dataclasses.replace(self, prompts=[self.prompts[row] for row in rows], **arrays)


def read_arrays(path):
    """The arrays of an attention.npz, checked: names, shapes, dtypes and ranges."""
    arrays = read_npz(path, list(ARRAYS))
    check_arrays(path, arrays)
    return arrays


def check_arrays(path, arrays):
    """Shapes agree with one another, dtypes are plain, values are inside their range."""
    if arrays["entropy"].ndim != 4:
        raise UserError(
            f"{path}: entropy has {arrays['entropy'].ndim} axes, expected 4 (prompt, layer, head, "
            "query)"
        )
    sizes = dict(zip(("prompt", "layer", "head", "query"), arrays["entropy"].shape, strict=True))
    for name, (kind, axes) in ARRAYS.items():
        array, expected = arrays[name], tuple(sizes.get(axis, axis) for axis in axes)
        if array.shape != expected or array.dtype.kind != kind:
            raise UserError(
                f"{path}: {name} is {array.dtype} {array.shape}, expected "
                f"{'/'.join(map(str, axes))} = {expected} of kind {kind}"
            )
    if 0 in sizes.values():
        raise UserError(f"{path}: holds no prompts, layers, heads or rows")
    unknown = set(arrays["category"].tolist()) - set(CATEGORIES)
    if unknown:
        name = printable(sorted(unknown)[0])
        raise UserError(f"{path}: unknown category {name!r}; allowed are {', '.join(CATEGORIES)}")
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
    visible = arrays["visible_keys"]
    if (visible < 1).any() or (visible > np.arange(1, n_query + 1)).any():
        raise UserError(f"{path}: visible_keys is outside 1 to query + 1")


def _check_values(path, arrays, n_query):
    """Inside a prompt nothing is NaN, masses are probabilities, and entropies are possible."""
    real = np.arange(n_query) < arrays["n_tokens"][:, None]
    for name in ("entropy", *PROBABILITIES):
        rows = ARRAYS[name][1][-1] == "query"
        values = arrays[name].transpose(0, 3, 1, 2)[real] if rows else arrays[name]
        if not np.isfinite(values).all():
            raise UserError(f"{path}: {name} is NaN or infinite inside a prompt")
    for name in PROBABILITIES:
        values = arrays[name][~np.isnan(arrays[name])]
        if ((values < -1e-3) | (values > 1 + 1e-3)).any():
            raise UserError(f"{path}: {name} holds a probability outside [0, 1]")
    bound = np.log(arrays["visible_keys"])[None, :, None, :] + 1e-2
    for name in ("entropy", "entropy_sinkfree"):
        if ((arrays[name] < 0) | (arrays[name] > bound)).any():
            raise UserError(f"{path}: {name} is outside 0 to ln(visible keys)")
