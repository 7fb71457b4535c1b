"""A tuning study's results: its checkpoints as arrays, its tables, and how they are read again.

    save_checkpoints(folder / "checkpoints.npz", checkpoints)
    finish_study(folder, config)        once everything else is written
    study = load_study("tuning_results/latest_study")

A study is complete when its manifest.json exists, as a run is. Its config says "status": "complete"
too. The training run (arm and seed) is the unit; a checkpoint is one dose of a run. Step 0, the
model before tuning, is the checkpoint "base".
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.files import sha256_of
from rolecircuits.inputs.folders import TUNING
from rolecircuits.runs.files import read_json, write_json
from rolecircuits.runs.load import check_files
from rolecircuits.runs.npz import read_npz, write_npz
from rolecircuits.runs.record import SCHEMA_VERSION

BASE = "base"
CHECKPOINTS, CONFIG, SUMMARY = TUNING.marker, "study_config.json", "summary.json"
SIGNALS, LAYER_COUNTS = "signals.csv", "layer_counts.csv"
CONTRASTS, AGREEMENT = "arm_contrasts.csv", "profile_agreement.csv"
DOSES, LAYERS = "doses.csv", "layers.csv"
NEEDED = (CONFIG, CHECKPOINTS, SUMMARY, SIGNALS, LAYER_COUNTS)
ARRAYS = {
    "arm": ("U", ("checkpoint",)),
    "seed": ("i", ("checkpoint",)),
    "dose": ("i", ("checkpoint",)),
    "scale": ("f", ("checkpoint",)),
    "matched": ("b", ("checkpoint",)),
    "drift": ("f", ("checkpoint",)),
    "compliance": ("f", ("checkpoint",)),
    "choice": ("f", ("checkpoint",)),
    "facts": ("f", ("checkpoint",)),
    "roleplay": ("f", ("checkpoint",)),
    "refusal": ("f", ("checkpoint",)),
    "loss": ("f", ("checkpoint",)),
    "signal": ("U", ("signal",)),
    "value": ("f", ("checkpoint", "signal")),
    "profile": ("U", ("profile",)),
    "profile_value": ("f", ("checkpoint", "profile", "layer")),
}
DTYPES = {"U": np.str_, "i": np.int64, "f": np.float64, "b": np.bool_}
RATES = ("compliance", "choice", "facts", "roleplay", "refusal")
BEHAVIOUR = ("scale", "drift", *RATES, "loss")  # in the order of the columns of doses.csv
NO_KL = 1e-3  # rounding may take a divergence a little below 0
FACTS = ("model", "set", "format", "run")  # the columns that every CSV begins with
COUNTED = ("arm_first", "arm_second", "same_arm", "layers_q_below_alpha")  # of layer_counts.csv
# columns whose fields are never read as numbers
TEXTS = (*FACTS, "signal", "verdict", "arm_first", "arm_second", "index", "kind")
MAX_NAME = 80


@dataclass(frozen=True)
class Checkpoints:
    """Every checkpoint of a study (ARRAYS has kinds and axes).

    arm         [checkpoint] "base", or the arm of the run       seed   [checkpoint] -1 of base
    dose        [checkpoint] optimizer steps, 0 of base
    scale       [checkpoint] factor of the adapter, 1 as trained
    matched     [checkpoint] whether it was scaled to the drift of the other runs
    drift       [checkpoint] mean KL(step 0 || checkpoint) of the next token, nats
    compliance, choice, facts, roleplay, refusal   [checkpoint] rates, 0 to 1; NaN: not measured
    loss        [checkpoint] mean training loss since the dose before; NaN: no steps
    signal      [signal] names                value          [checkpoint, signal], NaN: undefined
    profile     [profile] names               profile_value  [checkpoint, profile, layer]
    """

    arm: np.ndarray
    seed: np.ndarray
    dose: np.ndarray
    scale: np.ndarray
    matched: np.ndarray
    drift: np.ndarray
    compliance: np.ndarray
    choice: np.ndarray
    facts: np.ndarray
    roleplay: np.ndarray
    refusal: np.ndarray
    loss: np.ndarray
    signal: np.ndarray
    value: np.ndarray
    profile: np.ndarray
    profile_value: np.ndarray

    @property
    def base(self):
        """The place of step 0."""
        return int(np.flatnonzero(self.arm == BASE)[0])

    @property
    def arms(self):
        """The arms, each once, in their order."""
        return list(dict.fromkeys(name for name in self.arm.tolist() if name != BASE))

    @property
    def runs(self):
        """[(arm, seed)] of the training runs, each once, in their order."""
        pairs = zip(self.arm.tolist(), self.seed.tolist(), strict=True)
        return list(dict.fromkeys(pair for pair in pairs if pair[0] != BASE))

    @property
    def names(self):
        """[checkpoint] the folder of each inside the study: "role_0/dose_0010"."""
        rows = (self.arm, self.seed, self.dose, self.matched)
        return [checkpoint_name(*row) for row in zip(*(x.tolist() for x in rows), strict=True)]

    def rows_of(self, arm, seed=None, matched=False):
        """Places of the checkpoints of an arm, or of one run, by dose; [] where there are none."""
        chosen = (self.arm == arm) & (self.matched == matched)
        chosen &= True if seed is None else self.seed == seed
        rows = np.flatnonzero(chosen)
        return rows[np.argsort(self.dose[rows], kind="stable")]

    def change(self, signal):
        """[checkpoint] a signal - its value at step 0."""
        values = self.value[:, self.signal.tolist().index(signal)]
        return values - values[self.base]

    def profile_change(self, profile):
        """[checkpoint, layer] a profile - that of step 0."""
        values = self.profile_value[:, self.profile.tolist().index(profile)]
        return values - values[self.base]


@dataclass(frozen=True)
class Study:
    """A complete study, loaded.

    config        study_config.json            checkpoints  Checkpoints
    summary       summary.json                 signals      rows of signals.csv
    layer_counts  rows of layer_counts.csv     numbers in rows are floats, NaN where empty
    """

    path: Path
    config: dict
    checkpoints: Checkpoints
    summary: dict
    signals: list
    layer_counts: list

    @property
    def label(self):
        """Model, format and runs, for titles."""
        runs, arms = self.checkpoints.runs, self.checkpoints.arms
        fed = f"{printable(self.facts['model'])}, {printable(self.facts['format'])} prompts"
        return f"{fed}; {len(runs)} training runs of {len(arms)} arms"

    @property
    def facts(self):
        """{column: value} by which every row of a CSV says which study it is of."""
        return {column: self.signals[0][column] for column in FACTS}

    @property
    def primary(self):
        """The signal that was declared before the first step."""
        return self.config["primary"]


def checkpoint_name(arm, seed, dose, matched):
    """The folder of a checkpoint inside the study."""
    if arm == BASE:
        return BASE
    return f"{arm}_{seed}/matched" if matched else f"{arm}_{seed}/dose_{dose:04d}"


def save_checkpoints(path, checkpoints):
    """Write the Checkpoints, checked as they are when read."""
    arrays = {
        name: np.asarray(getattr(checkpoints, name)).astype(DTYPES[kind])
        for name, (kind, _) in ARRAYS.items()
    }
    check_checkpoints(path, arrays)
    write_npz(path, arrays)


def load_checkpoints(path):
    """The Checkpoints of a file, checked: names, shapes, kinds and ranges."""
    arrays = read_npz(path, list(ARRAYS))
    check_checkpoints(path, arrays)
    return Checkpoints(**arrays)


def check_checkpoints(path, arrays):
    """Refuse arrays whose shapes, kinds, names or values no study has."""
    sizes = {}
    for name, (kind, axes) in ARRAYS.items():
        array = arrays[name]
        sizes |= {axis: n for axis, n in zip(axes, array.shape, strict=False) if axis not in sizes}
        expected = tuple(sizes.get(axis, 0) for axis in axes)
        if array.shape != expected or array.dtype.kind != kind:
            raise UserError(
                f"{path}: {name} is {array.dtype} {array.shape}, expected {'/'.join(axes)} = "
                f"{expected} of kind {kind}"
            )
    if not sizes["checkpoint"] or not sizes["layer"]:
        raise UserError(f"{path}: profile_value holds no checkpoints or no layers")
    for name in ("arm", "signal", "profile"):
        _check_names(path, name, arrays[name].tolist(), name != "arm")
    _check_steps(path, arrays)
    _check_values(path, arrays)


def _check_names(path, field, names, once):
    """Refuse names that cannot stand in a folder or a column, and those that occur twice."""
    for name in names:
        if not name.isascii() or not name.isidentifier() or len(name) > MAX_NAME:
            raise UserError(f"{path}: {field} holds {printable(name)[:60]!r}, which is no name")
    if once and len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path}: {field} holds {twice} more than once")


def _check_steps(path, arrays):
    """One base without steps; every other checkpoint has a seed, steps and a scale, and is once."""
    base = arrays["arm"] == BASE
    if base.sum() != 1:
        raise UserError(f"{path}: arm has {base.sum()} checkpoints {BASE!r}, expected 1")
    for name, of_base in (("seed", -1), ("dose", 0)):
        least = 0 if name == "seed" else 1
        if arrays[name][base][0] != of_base or (arrays[name][~base] < least).any():
            raise UserError(
                f"{path}: {name} is out of range: {of_base} of base, others from {least}"
            )
    if not (np.isfinite(arrays["scale"]).all() and (arrays["scale"] > 0).all()):
        raise UserError(f"{path}: scale is not above 0 everywhere")
    if arrays["matched"][base].any():
        raise UserError(f"{path}: matched is True of base, which has no adapter to scale")
    places = zip(*(arrays[n].tolist() for n in ("arm", "seed", "dose", "matched")), strict=True)
    seen = set()
    for place in places:
        if place in seen:
            raise UserError(f"{path}: arm, seed, dose: {checkpoint_name(*place)} is there twice")
        seen.add(place)


def _check_values(path, arrays):
    """Drifts are divergences, rates are in [0, 1], nothing is infinite."""
    drift = arrays["drift"]
    if not (np.isfinite(drift).all() and (drift > -NO_KL).all()):
        raise UserError(f"{path}: drift holds a value that no KL divergence has")
    for name in RATES:
        values = arrays[name][~np.isnan(arrays[name])]
        if ((values < 0) | (values > 1)).any():
            raise UserError(f"{path}: {name} holds a rate outside [0, 1]")
    for name in ("loss", "value", "profile_value"):
        if np.isinf(arrays[name]).any():
            raise UserError(f"{path}: {name} is infinite")


def dose_rows(checkpoints, facts):
    """Rows of doses.csv, a checkpoint each; facts {"model", "set", "format"} of all of them."""
    rows = []
    for i, name in enumerate(checkpoints.names):
        row = facts | {"run": name, **_place(checkpoints, i)}
        row |= {column: getattr(checkpoints, column)[i] for column in BEHAVIOUR}
        rows.append(row | dict(zip(checkpoints.signal.tolist(), checkpoints.value[i], strict=True)))
    return rows


def _place(checkpoints, i):
    """Arm, seed, dose and whether it is matched, of one checkpoint."""
    columns = ("arm", "seed", "dose", "matched")
    return {column: getattr(checkpoints, column)[i].item() for column in columns}


def finish_study(folder, config):
    """Write study_config.json as complete, and last the manifest of what a reader needs."""
    folder = Path(folder)
    write_json(folder / CONFIG, config | {"status": "complete"})
    files = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
        for name in NEEDED
    }
    write_json(folder / "manifest.json", {"schema_version": SCHEMA_VERSION, "files": files})


def load_study(folder, verify=True):
    """A complete study as a Study, checked.

    verify  False does not compare its files with the manifest; what is in them is still checked
    """
    folder = check_files(folder, NEEDED, verify)
    checkpoints = load_checkpoints(folder / CHECKPOINTS)
    config, summary = read_json(folder / CONFIG), read_json(folder / SUMMARY)
    _check_config(folder / CONFIG, config, checkpoints)
    if not isinstance(summary, dict):
        raise UserError(f"{folder / SUMMARY}: is not a JSON object; it is damaged")
    signals, counts = (read_rows(folder / name) for name in (SIGNALS, LAYER_COUNTS))
    _check_table(folder / SIGNALS, signals, (*FACTS, "signal", "verdict"))
    if not signals or config["primary"] not in [row["signal"] for row in signals]:
        raise UserError(f"{folder / SIGNALS}: has no row of {config['primary']}; it is damaged")
    _check_table(folder / LAYER_COUNTS, counts, (*FACTS, *COUNTED) if counts else ())
    return Study(folder, config, checkpoints, summary, signals, counts)


def _check_table(path, rows, needed):
    """Refuse a table without the columns that its readers need, or with a text for a number."""
    lacking = [name for name in needed if rows and name not in rows[0]]
    if lacking:
        raise UserError(f"{path}: has no column {lacking[0]}; it is damaged")
    for i, row in enumerate(rows):
        for name, value in row.items():
            if name not in TEXTS and isinstance(value, str):
                shown = printable(value)[:40]
                raise UserError(f"{path}: {name} of row {i + 1} is {shown!r}; it is damaged")


def _check_config(path, config, checkpoints):
    """Refuse a config without its model and the signal that was declared."""
    if not isinstance(config, dict) or config.get("status") != "complete":
        raise UserError(f"{path}: status is not complete; run tuning_study.py again")
    if not isinstance(model_id(config), str):
        raise UserError(f"{path}: model.id is missing; it is damaged")
    primary = config.get("primary")
    if primary not in checkpoints.signal.tolist():
        shown = printable(primary)[:60]
        raise UserError(f"{path}: primary is {shown}, which is no signal of checkpoints.npz")


def model_id(config):
    """The model's id of a study_config, None where it is missing."""
    model = config.get("model")
    return model.get("id") if isinstance(model, dict) else None


def read_rows(path):
    """The rows of a CSV of ours: texts, floats, True and False; an empty field is NaN."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.reader(file, strict=True)
            columns = next(reader, [])
            lines = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: damaged: {error}") from error
    if len(set(columns)) < len(columns) or not columns:
        raise UserError(f"{path}: its columns are missing or not told apart; it is damaged")
    for i, line in enumerate(lines):
        if len(line) != len(columns):
            raise UserError(
                f"{path}: row {i + 1} has {len(line)} fields, expected {len(columns)}; it is "
                "damaged"
            )
    return [
        {name: _cell_value(name, text) for name, text in zip(columns, line, strict=True)}
        for line in lines
    ]


def _cell_value(column, text):
    """What a field says: a number, True or False, or its text."""
    if text[:1] == "'" and text[1:2] in tuple("=+-@\t\r\n"):  # as write_csv marks a text
        text = text[1:]
    if column in TEXTS:
        return text
    if text in ("True", "False"):
        return text == "True"
    try:
        return float(text) if text else np.nan
    except ValueError:
        return text
