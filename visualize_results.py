"""Draw the figures of a run, and write the numbers behind each as CSV.

    python visualize_results.py --output_dir my_figures \\
        --input_dir results_activation_analysis/demo/latest_run
    python visualize_results.py --output_type intervention --format svg \\
        --input_dir results_activation_analysis/demo/crossed/latest_intervention
    python visualize_results.py  # needs a run of activation_analysis.py
    python visualize_results.py --output_type base  # needs a base run

    --output_type  reads (results_activation_analysis/...)  writes
    instruct       latest_run                               figures/
    base           latest_base                              figures_base/
    intervention   latest_intervention, and latest_sweep   figures/intervention/
                   if it is of the same model

A folder of --documents that --input_dir names is drawn into figures/documents/.

<output_dir>/visualization_*.png are the figures,
<output_dir>/data/visualization_*.csv what they draw. Of an intervention run
these are the effects, the sweep, and for every candidate one figure of RFC, RSI
and entropy, edited over unedited; --all_figures adds the figures of a run for
each edit. The run is checked before anything is written; no model is loaded.
"""

import sys
import time
from functools import partial
from pathlib import Path

from output_manager import check_files, load_run, read_config
from rolecircuits.engines.fork_map import fork_map
from rolecircuits.inputs.arguments import (
    DEFAULT_RESULTS,
    LATEST_INTERVENTION,
    LATEST_RUNS,
    LATEST_SWEEP,
    RUN_TYPES,
    add_contrast_arguments,
    add_verify_argument,
    check_output_dir,
    run_type,
    say_unverified,
)
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.files import follow_links
from rolecircuits.inputs.parser import Parser, collector_paused, run_script
from rolecircuits.inputs.specs import same_weights
from rolecircuits.runs.record import FED

FOLDERS = {
    "instruct": (LATEST_RUNS["instruct"], "figures"),
    "base": (LATEST_RUNS["base"], "figures_base"),
    "intervention": (LATEST_INTERVENTION, "figures/intervention"),
}
DOCUMENT_FIGURES = "figures/documents"
BASELINE = "baseline"  # the unedited pass inside an intervention run
FORMATS = ("png", "svg", "pdf")


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    choice = {"type": run_type, "choices": RUN_TYPES, "default": "instruct"}
    parser.add_argument("--output_type", **choice, help="which run is drawn")
    parser.add_argument("--input_dir", help="run folder (default: the newest of the output type)")
    parser.add_argument("--output_dir", help="where the figures go (default: by output type)")
    parser.add_argument("--format", choices=FORMATS, default="png", help="of the figures")
    every = "of an intervention run: also the figures of a run for each edit"
    parser.add_argument("--all_figures", action="store_true", help=every)
    add_contrast_arguments(parser)
    add_verify_argument(parser)
    return parser.parse_args(argv)


def run(args):
    say_unverified(args)
    latest, figures = FOLDERS[args.output_type]
    input_dir, output_dir = (
        args.input_dir or Path(DEFAULT_RESULTS, latest),
        args.output_dir or figures,
    )
    verify = not args.no_verify
    if args.output_type == "intervention":
        if args.contrast or args.roles:
            raise UserError(
                "--contrast and --roles are for runs, not for --output_type intervention"
            )
        visualize_interventions(input_dir, output_dir, args.format, verify, args.all_figures)
        return
    if args.all_figures:
        raise UserError("--all_figures is for --output_type intervention")
    if is_documents_run(input_dir):
        if args.contrast or args.roles:
            raise UserError("--contrast and --roles are for prompts, not for documents")
        visualize_documents(input_dir, args.output_dir or DOCUMENT_FIGURES, args.format, verify)
        return
    check_output_dir(output_dir)
    loaded = load_run(input_dir, verify).rename(args.roles)
    visualize(loaded, output_dir, args.format, args.contrast)


def visualize(run, output_dir, file_format="png", asked=()):
    """Write the figures of a loaded run and their CSVs; returns the paths of the figures.

    asked  contrasts "a-b" in place of the usual ones
    """
    start = time.perf_counter()
    check_output_dir(output_dir)
    with collector_paused():
        from rolecircuits.drawing import run_figures, study, style  # matplotlib: not for --help

    studied = study.study_run(run, asked=asked)

    def draw(name):
        drawing = run_figures.draw_figure(name, studied)
        return style.save_drawing(output_dir, name, drawing, file_format, run.facts)

    paths = fork_map(
        draw, run_figures.names_for(run), cost=lambda name: run_figures.COSTS.get(name, 1)
    )
    seconds, folder = time.perf_counter() - start, printable(Path(output_dir))
    size = f"{run.n_layers} layers x {run.n_heads} heads, {len(run.category)} prompts"
    print(
        f"{len(paths)} figures of {run.label} ({size}) in {folder}/ in {seconds:.1f} s, "
        f"data in {folder}/data/"
    )
    return paths


def is_documents_run(path):
    """Whether a path names a folder that activation_analysis.py --documents wrote."""
    return (follow_links(path) / "documents.npz").is_file()


def visualize_documents(input_dir, output_dir, file_format="png", verify=True):
    """Draw a documents run, as its own figures/ shows it; returns the paths."""
    output_dir = check_output_dir(output_dir)
    with collector_paused():
        from rolecircuits.drawing import document_figures, style  # matplotlib: not for --help
    folder = check_files(input_dir, ("documents.npz", "experiment_config.json"), verify)
    drawings = document_figures.draw_folder(folder)
    paths = [
        style.save_drawing(output_dir, name, drawing, file_format)
        for name, drawing in drawings.items()
    ]
    print(f"{', '.join(path.name for path in paths)} in {printable(output_dir)}/")
    return paths


def visualize_interventions(
    input_dir, output_dir, file_format="png", verify=True, all_figures=False, sweep_dir=None
):
    """Draw an intervention run; returns the paths of effects, sweep and overlays.

    verify       False leaves out the SHA-256 of the files
    all_figures  also those of a run for each of its sub-folders
    sweep_dir    a sweep of the same model, by default latest_sweep beside the run if it is one
    """
    input_dir, output_dir = follow_links(input_dir), check_output_dir(output_dir)
    if (input_dir / "attention.npz").is_file():  # the folder of one edit: it is a run by itself
        return visualize(load_run(input_dir, verify), output_dir, file_format)
    if not input_dir.exists():
        raise UserError(
            f"{printable(input_dir)}: no intervention run found; interventions.py writes one"
        )
    with collector_paused():
        from rolecircuits.drawing import edit_figures, style  # matplotlib: not for --help
        from rolecircuits.runs import arrays, edit_results  # numpy

    folder = check_files(input_dir, ("effects.json", "experiment_config.json"), verify)
    rows, config = edit_results.read_effects(folder), read_config(folder)
    n = printable(config["prompts"].get("n", "unknown"))
    label = f"{printable(config['model']['id'])}, {config['prompts']['format']} prompts, n = {n}"
    facts = arrays.facts_of(config, folder.name)
    drawings = {"effects": (partial(edit_figures.draw_effects, rows, label), facts)}
    sweep = Path(sweep_dir or input_dir.parent / LATEST_SWEEP)
    if sweep_dir or sweep.exists():
        swept_folder = check_files(sweep, ("head_effects.npz", "experiment_config.json"), verify)
        swept = read_config(swept_folder)
        reason = sweep_mismatch(swept, config)
        if reason and sweep_dir:
            raise UserError(f"{sweep}: {reason}")
        if reason:
            print(f"note: {printable(sweep)} is left out: {printable(reason)}")
        else:
            numbers = edit_results.read_sweep(swept_folder, swept)
            drawn = partial(edit_figures.draw_sweep, *numbers)
            drawings["head_sweep"] = drawn, arrays.facts_of(swept, swept_folder.name)
    runs = load_edits(folder, verify)
    for name, edited in runs.items():
        if is_candidate(edited) and BASELINE in runs:
            drawn = partial(edit_figures.draw_overlay, edited, runs[BASELINE])
            drawings[f"edit_{name}"] = drawn, edited.facts

    def draw(name):
        drawn, facts = drawings[name]
        return style.save_drawing(output_dir, name, drawn(), file_format, facts)

    paths = fork_map(draw, drawings)
    for name, edited in runs.items() if all_figures else ():
        visualize(edited, output_dir / name, file_format)
    print(f"{', '.join(path.name for path in paths)} in {printable(output_dir)}/")
    return paths


def load_edits(folder, verify):
    """{sub-folder: Run} of an intervention run: its edits, and the unedited pass."""
    folders = sorted(path.parent for path in folder.glob("*/manifest.json"))
    for sub in folders:
        if sub.is_symlink():
            raise UserError(f"{sub}: is a symlink; a run holds its own folders")
    return {sub.name: load_run(sub, verify) for sub in folders}


def is_candidate(run):
    """Whether a run is of an edit that is studied, neither its control nor the unedited pass."""
    entry = run.config.get("intervention")
    return bool(entry) and entry.get("role", "candidate") == "candidate"


def sweep_mismatch(swept, config):
    """Why a sweep does not belong beside an intervention run (their configs); None if it does."""
    ids = [facts["model"]["id"] for facts in (swept, config)]
    if not same_weights(swept["model"], config["model"]):
        return f"it has other weights ({ids[0]}) than the interventions ({ids[1]})"
    for name in FED:
        values = [facts["prompts"].get(name) for facts in (swept, config)]
        if values[0] != values[1]:
            return f"its prompts have {name} {values[0]}, those of the interventions {values[1]}"
    return None


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
