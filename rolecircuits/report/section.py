"""What a report is made of: what was read (Context), and what each section shows (Section).

A section is built by a function NAME_section(context) -> Section, or None where there is nothing
to show; its page is templates/NAME.html (Jinja, what is read without JavaScript) and NAME.js.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

SIDES = ("base", "instruct")
INDEX_NAMES = {"rfc": "RFC", "rsi": "RSI"}
DIGITS = 6  # significant digits of every number in the page


@dataclass(frozen=True)
class Section:
    """One section of the page.

    name    id of its <section>, and of templates/NAME.html and NAME.js, each where there is one
    title   its heading                   see   one sentence that says what to see here
    static  what NAME.html needs          data  what NAME.js gets, as JSON
    tables  {"name.csv": rows, a list of dicts}: each becomes a link that downloads it
    packed  whether data travel compressed: where they are many numbers as text
    """

    name: str
    title: str
    see: str
    static: dict = field(default_factory=dict)
    data: dict = field(default_factory=dict)
    tables: dict = field(default_factory=dict)
    packed: bool = False


@dataclass(frozen=True)
class Folders:
    """Where else results lie, each a Path that was checked, or None.

    answers  runs of experiment.py, () without    texts  what the documents say, {id: [(role,
             text), ...]}, or None where their file is not there
    """

    comparison: Path | None = None
    documents: Path | None = None
    interventions: Path | None = None
    sweep: Path | None = None
    tuning: Path | None = None
    answers: tuple[Path, ...] = ()
    texts: dict | None = None


@dataclass
class Context:
    """What all sections are built from.

    runs      {(set, side): Run}, crossed first, base before instruct
    numbers   {(set, side): numbers.RunNumbers}     pairs   {set: numbers.PairNumbers}
    folders   the other results                      verified  whether files were compared with
    command   how the report was made                          their manifests
    notes     what a reader must know first
    """

    runs: dict
    numbers: dict = field(default_factory=dict)
    pairs: dict = field(default_factory=dict)
    folders: Folders = field(default_factory=Folders)
    verified: bool = True
    command: str = ""
    notes: list = field(default_factory=list)

    @property
    def sets(self):
        """The names of the prompt sets, in order."""
        return list(dict.fromkeys(name for name, _ in self.runs))

    def sides(self, name):
        """The sides of which there is a run of this set."""
        return [side for of_set, side in self.runs if of_set == name]


def run_key(key):
    """(set, side) as one text, the key of a run in the page's JSON."""
    return "|".join(key)


def run_facts(run, key):
    """The columns that every CSV begins with."""
    name, side = key
    return {
        "model": run.config["model"]["id"],
        "set": name,
        "format": run.prompt_format,
        "run": side,
    }


def show_number(value, digits=3):
    """A signed number, or - where it is undefined."""
    return "-" if value is None or np.isnan(value) else f"{value:+.{digits}f}"


def show_interval(estimate, low, high, digits=3):
    """A number beside its interval: +0.012 [-0.003, +0.027]."""
    shown = show_number(estimate, digits)
    if low is None or np.isnan(low):
        return shown
    return f"{shown} [{show_number(low, digits)}, {show_number(high, digits)}]"


def as_plain(value):
    """`value` as JSON has it: numbers with DIGITS significant digits, NaN as None."""
    if isinstance(value, float):  # first: nearly all values are; numpy's float64 is one
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): as_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_plain(v) for v in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return as_plain(value.tolist())
    return str(value) if isinstance(value, Path) else value
