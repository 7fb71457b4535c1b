"""What a folder is that a user named, and which command reads it.

A reader that is given another kind of folder than it takes says so; only a folder of its own kind
that lacks something is damaged.
"""

from dataclasses import dataclass
from pathlib import Path

from rolecircuits.inputs.errors import UserError, printable

PICTURES = (".png", ".svg", ".pdf")
MANY = 100  # folders inside a folder that are looked at


@dataclass(frozen=True)
class Kind:
    """One kind of folder that a script writes.

    marker  the file that only this kind holds
    what    its name in a message
    read    what reads it
    """

    marker: str
    what: str
    read: str


RUN = Kind(
    "attention.npz",
    "a run of activation_analysis.py",
    "analyze_results.py and visualize_results.py read it with --input_dir",
)
INTERVENTION = Kind(
    "effects.json",
    "an intervention run",
    "visualize_results.py --output_type intervention reads it with --input_dir; "
    "baseline and each edit in it are runs",
)
SWEEP = Kind(
    "head_effects.npz",
    "a sweep of interventions.py",
    "visualize_results.py --output_type intervention draws the newest, beside an intervention run",
)
DOCUMENTS = Kind(
    "documents.npz",
    "a documents run",
    "visualize_results.py and report.py --documents read it; documents.csv holds its table",
)
GENERATION = Kind(
    "generation_results.json",
    "a folder of answers of experiment.py",
    "its results are generation_results.json and, with a plan, answer_changes.csv",
)
COMPARISON = Kind(
    "comparison_summary.json",
    "a comparison of two runs",
    "cross_model_correlation.py reads it with --comparison NAME=DIR",
)
ANALYSIS = Kind(
    "ablation_candidates.json",
    "an analysis by analyze_results.py",
    "interventions.py reads ablation_candidates.json in it with --config_file",
)
CORRELATION = Kind(
    "cross_model_summary.csv",
    "written by cross_model_correlation.py",
    "its results are the CSVs and the figure",
)
TUNING = Kind(
    "checkpoints.npz",
    "a tuning study",
    "report.py reads it with --tuning; signals.csv holds its table",
)
FIGURES = Kind("", "a folder of figures", "visualize_results.py draws them from a run")
KINDS = (
    *(RUN, INTERVENTION, SWEEP, DOCUMENTS, GENERATION, COMPARISON, ANALYSIS, CORRELATION),
    TUNING,
)


def kind_of(folder):
    """The Kind of a folder, None where it holds nothing by which one is known."""
    folder = Path(folder)
    for kind in KINDS:
        if (folder / kind.marker).is_file():
            return kind
    return FIGURES if _holds_pictures(folder) else None


def _holds_pictures(folder):
    """Whether a folder is as every figure is saved: the picture, and its numbers in data/."""
    if not (folder / "data").is_dir():
        return False
    return any(path.suffix in PICTURES for path in folder.iterdir())


def check_kind(folder, wanted):
    """Refuse a folder that is known to be of another Kind than `wanted`, and say what reads it."""
    folder = Path(folder)
    kind = kind_of(folder)
    if kind is not None and kind is not wanted:
        raise UserError(f"{folder}: is {kind.what}, not {wanted.what}: {kind.read}")
    if kind is None and (inside := _first_inside(folder)):
        name, kind = inside
        raise UserError(
            f"{folder}: is not {wanted.what} but holds folders, {printable(name)} for one "
            f"({kind.what}): name one of them"
        )


def _first_inside(folder):
    """(name, Kind) of a folder inside: of a latest_* link if there is one. None without any."""
    if (folder / "manifest.json").is_file():
        return None
    inside = [path for path in sorted(folder.iterdir())[:MANY] if path.is_dir()]
    inside.sort(key=lambda path: not path.is_symlink())
    found = ((path.name, kind_of(path)) for path in inside if not path.name.startswith("."))
    return next(((name, kind) for name, kind in found if kind), None)


def describe_folder(folder):
    """ " (<what it is>: <what reads it>)" of a folder given where a file is wanted, or nothing."""
    kind = kind_of(folder)
    return f" ({kind.what}: {kind.read})" if kind else ""
