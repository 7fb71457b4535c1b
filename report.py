"""Runs of a model pair as one HTML file that opens from disk and needs no network.

    python report.py results_activation_analysis/demo/latest_base \\
        results_activation_analysis/demo/latest_run \\
        results_activation_analysis/demo/crossed/latest_base \\
        results_activation_analysis/demo/crossed/latest_run

RUN are run folders of one model pair; they are grouped by prompt set and by
side (base or instruct), and two runs of one set are compared. Contrasts a-b are
focus(a) - focus(b): positive where attention on a is the more focused.
Everything is computed from the runs; other results (documents, interventions, a
sweep, a tuning study, answers) are shown where their folders are given.
"""

import shlex
import sys
from pathlib import Path

from output_manager import check_files, load_run, resolve_run
from rolecircuits.documents.shapes import Fields
from rolecircuits.documents.texts import FIELD_FLAGS, read_documents
from rolecircuits.inputs.arguments import (
    CONVERSATION,
    add_contrast_arguments,
    add_verify_argument,
    check_output_dir,
    say_unverified,
)
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.files import sha256_of
from rolecircuits.inputs.parser import Parser, run_script
from rolecircuits.models import families
from rolecircuits.runs import files
from rolecircuits.runs.record import portable

OUTPUT = "report.html"
NEEDED = {  # the files of other results that are read
    "documents": ("documents.npz", "experiment_config.json"),
    "interventions": ("effects.json", "experiment_config.json"),
    "sweep": ("head_effects.npz", "experiment_config.json"),
    "tuning": ("checkpoints.npz", "study_config.json", "signals.csv", "layer_counts.csv"),
    "answers": ("generation_results.json", "experiment_config.json"),
}


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder, or a link to one")
    parser.add_argument("--comparison", help="folder of compare_base_instruct.py: its notes")
    parser.add_argument("--documents", help="a documents run")
    parser.add_argument("--interventions", help="an intervention run")
    parser.add_argument("--sweep", help="a sweep of heads")
    parser.add_argument("--tuning", help="a tuning study")
    said = "runs of experiment.py: answers beside their prompts"
    parser.add_argument("--answers", nargs="+", metavar="FOLDER", help=said)
    fed = "what the documents run was fed (default: the file that it names, if unchanged)"
    parser.add_argument("--documents_file", metavar="FILE", help=fed)
    parser.add_argument("--output", default=OUTPUT, help=f"the file written (default {OUTPUT})")
    add_contrast_arguments(parser)
    add_verify_argument(parser)
    return parser.parse_args(argv)


def run(args):
    say_unverified(args)
    path, verify = check_output(args.output), not args.no_verify
    loaded = [load_run(folder, verify).rename(args.roles) for folder in args.runs]
    folders = {name: getattr(args, name) for name in ("comparison", *NEEDED)}
    if args.documents_file and not args.documents:
        raise UserError("--documents_file needs --documents: the run that was fed this file")
    folders["documents_file"] = args.documents_file
    write_report(loaded, folders, path, verify, args.contrast)


def check_output(path):
    """The path of the file to write, refused now where it cannot be written."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"--output {path}: is a folder; name a file")
    check_output_dir(path.parent, "--output")
    return path


def write_report(runs, folders, path, verify=True, asked=()):
    """Write the report of loaded runs; returns its path.

    folders  {"comparison", "documents", "interventions", "sweep", "tuning": a folder, or None,
             "answers": folders, or None, "documents_file": a file, or None}, any of them
    verify   False leaves out the SHA-256 of the files in them     asked  contrasts "a-b"
    """
    from rolecircuits.report import build, section  # numpy and jinja2: not for --help

    path, found = Path(path), {}
    for name, folder in folders.items():
        if name == "answers":
            found[name] = tuple(check_folder(name, one, verify) for one in folder or ())
        elif folder is not None and name != "documents_file":
            found[name] = check_folder(name, folder, verify)
    if "documents" in found:
        found["texts"] = read_texts(found["documents"], folders.get("documents_file"))
    command = describe_command(runs, folders, path, asked)
    given = section.Folders(**found)
    text = build.build_report(runs, given, verify, command, asked)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replaced_file(path) as file:
        file.write(text)
    print(f"{printable(path)}: {path.stat().st_size / 1e6:.1f} MB; open it in a browser")
    return path


def report_family(name, studies, done):
    """Write analysis_results/NAME/report.html: every run of a family, its edits and answers.

    studies  [models.families.Study]    done  {"edited": whether the base model's edits are there,
             "answered": [side whose answers are]}
    """
    edited, verify = studies[families.edited_study(studies)], not studies[0].args.no_verify
    runs = [load_run(link, verify) for study in studies for link in study.runs.values()]
    folders = {"interventions": run_of(edited, "edits")} if done["edited"] else {}
    sides = [side for side in families.SIDES if side in done["answered"]]
    folders["answers"] = [run_of(edited, families.ANSWERS[side]) for side in sides]
    return write_report(runs, folders, families.report_path(name), verify)


def run_of(study, stage):
    """The folder of a stage's newest run: by its own name, for the command in the report."""
    link = study.links[stage]
    return link.parent / resolve_run(link).name


def check_folder(name, folder, verify):
    """The folder of other results, refused where it is not whole."""
    if name in NEEDED:
        return check_files(folder, NEEDED[name], verify)
    if not (Path(folder) / "comparison_summary.json").is_file():
        raise UserError(f"--{name} {folder}: has no comparison_summary.json")
    return Path(folder)


def read_texts(folder, given=None):
    """{document id: [(role, text), ...]} of what a documents run was fed; None where it is gone.

    given  its file; without one the file that the run's config names, if it is there unchanged
    """
    config = files.read_json(folder / "experiment_config.json")
    arguments = config.get("arguments") or {}
    own = folder / CONVERSATION  # a chat holds what was said
    path = given or (own if own.is_file() else arguments.get("documents"))
    if not path or not Path(path).expanduser().is_file():
        if given:
            raise UserError(f"--documents_file {given}: no such file")
        return None
    path = Path(path).expanduser()
    if sha256_of(path) != (config.get("documents") or {}).get("sha256"):
        if given:
            raise UserError(f"--documents_file {path}: is not the file that {folder} was fed")
        return None
    fields = Fields(*(arguments.get(name) for name in FIELD_FLAGS))
    reading = read_documents(path, fields, arguments.get("prompt_format") or "raw")
    return {document.id: list(document.turns) for document in reading.documents}


def describe_command(runs, folders, path, asked):
    """The command that makes this report again."""
    words = ["python", "report.py", *(portable(run.path) for run in runs if run.path)]
    for name, folder in folders.items():
        given = folder if name == "answers" else [folder] if folder is not None else []
        words += [f"--{name}", *map(portable, given)] if given else []
    words += ["--contrast", *asked] if asked else []
    return shlex.join([*words, "--output", portable(path)])


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
