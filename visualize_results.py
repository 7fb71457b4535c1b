"""Draw the nine figures of a run, and write the numbers behind each as CSV.

    python visualize_results.py
    python visualize_results.py --output_type base --format svg
    python visualize_results.py --input_dir results_activation_analysis/run_20260101_120000 --output_dir my_figures

    --output_type   reads (under results_activation_analysis/)   writes
    normal          latest_run                                    figures/
    base            latest_base                                   figures_base/
    intervention    latest_intervention                           figures/intervention/ (effects, sweep, and nine figures
                                                                  for the unedited run and every edit)

<output_dir>/visualization_*.png are the figures, <output_dir>/data/visualization_*.csv what they draw. The run is checked
before anything is written; no model is loaded.
"""

import sys
import time
from pathlib import Path

from rolecircuits.engines.fork_map import fork_map
from rolecircuits.inputs.arguments import (
    DEFAULT_RESULTS,
    LATEST_INTERVENTION,
    LATEST_RUNS,
    LATEST_SWEEP,
    add_verify_argument,
    check_output_dir,
    say_unverified,
)
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.files import follow_links
from rolecircuits.inputs.parser import Parser, collector_paused, run_script

FOLDERS = {
    "normal": (LATEST_RUNS["latest"], "figures"),
    "base": (LATEST_RUNS["latest_base"], "figures_base"),
    "intervention": (LATEST_INTERVENTION, "figures/intervention"),
}
FORMATS = ("png", "svg", "pdf")


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--output_type",
        choices=list(FOLDERS),
        default="normal",
        help="normal (default): instruct run",
    )
    parser.add_argument("--input_dir", help="run folder (default: the newest of the output type)")
    parser.add_argument("--output_dir", help="where the figures go (default: by output type)")
    parser.add_argument("--format", choices=FORMATS, default="png")
    add_verify_argument(parser)
    return parser.parse_args(argv)


def visualize(input_dir, output_dir, file_format="png", verify=True):
    """Write the nine figures of a run folder and their CSVs; returns the paths of the figures."""
    start = time.perf_counter()
    from output_manager import load_run
    from rolecircuits.runs.files import prepare_folder, write_csv

    check_output_dir(output_dir)
    run = load_run(input_dir, verify)

    with collector_paused():
        from rolecircuits.drawing.run_figures import FIGURES, draw_figure, study_run
        from rolecircuits.drawing.style import save_figure

    folder, study = prepare_folder(output_dir), study_run(run)

    def draw(name):
        figure, rows = draw_figure(name, study)
        path = folder / f"{name}.{file_format}"
        save_figure(figure, path)
        write_csv(folder / "data" / f"{name}.csv", rows)
        return path

    # figure 4 is the only one that needs seaborn and its libraries
    paths = fork_map(
        draw, FIGURES, cost=lambda name: 7 if name == "visualization_4_distributions" else 1
    )
    seconds = time.perf_counter() - start
    print(
        f"{len(paths)} figures of {run.label} ({run.n_layers} layers x {run.n_heads} heads, {len(run.category)} prompts) "
        f"in {printable(folder)}/ in {seconds:.1f} s, data in {printable(folder / 'data')}/"
    )
    return paths


def run(args):
    say_unverified(args)
    latest, figures = FOLDERS[args.output_type]
    input_dir = follow_links(args.input_dir or Path(DEFAULT_RESULTS, latest))
    if args.output_type == "intervention" and not (input_dir / "attention.npz").is_file():
        visualize_interventions(
            input_dir, args.output_dir or figures, args.format, verify=not args.no_verify
        )
    else:
        visualize(input_dir, args.output_dir or figures, args.format, not args.no_verify)


def visualize_interventions(input_dir, output_dir, file_format="png", each_run=True, verify=True):
    """Write effects and the sweep heatmap of an intervention run, and the nine figures of each of its sub-folders."""
    check_output_dir(output_dir)
    input_dir = follow_links(input_dir)
    if not (input_dir / "effects.json").is_file():
        raise UserError(
            f"{printable(input_dir)}: no intervention run found; interventions.py writes one"
        )

    paths = draw_interventions(
        input_dir, output_dir, file_format, draw_run=visualize if each_run else None, verify=verify
    )
    print(f"{', '.join(path.name for path in paths)} in {printable(output_dir)}/")
    return paths


def main(argv=None):
    return run_script(parse_args, run, argv)


def draw_interventions(
    input_dir, output_dir, file_format="png", sweep_dir=None, draw_run=None, verify=True
):
    """Draw an intervention run; returns the paths of effects and sweep.

    sweep_dir  a sweep run, by default latest_sweep beside the run if there is one
    draw_run   function (sub-folder, output folder, file_format, verify) that draws the nine figures of a run:
               visualize_results.visualize; None leaves them out
    verify     False leaves out the SHA-256 of the files
    """

    from output_manager import check_files, read_config
    from rolecircuits.drawing.edit_figures import draw_effects, draw_sweep
    from rolecircuits.drawing.style import save_figure
    from rolecircuits.runs.edit_results import read_effects, read_sweep
    from rolecircuits.runs.files import prepare_folder, write_csv

    folder = check_files(input_dir, ("effects.json", "experiment_config.json"), verify)
    rows, config = read_effects(folder), read_config(folder)
    n = printable(config["prompts"].get("n", "unknown"))
    label = f"{printable(config['model']['id'])}, {config['prompts']['format']} prompts, n = {n}"
    output, drawings = prepare_folder(output_dir), {"effects": draw_effects(rows, label)}
    sweep_dir = follow_links(sweep_dir or Path(input_dir).parent / LATEST_SWEEP)
    if (sweep_dir / "head_effects.npz").is_file():
        sweep = check_files(sweep_dir, ("head_effects.npz", "experiment_config.json"), verify)
        drawings["head_sweep"] = draw_sweep(*read_sweep(sweep, read_config(sweep)))
    paths = []
    for name, (figure, data) in drawings.items():
        paths.append(output / f"{name}.{file_format}")
        save_figure(figure, paths[-1])
        write_csv(output / "data" / f"{name}.csv", data)
    for sub in sorted(path.parent for path in folder.glob("*/manifest.json")) if draw_run else []:
        if sub.is_symlink():
            raise UserError(f"{sub}: is a symlink; a run holds its own folders")
        draw_run(sub, output / sub.name, file_format, verify)
    return paths


if __name__ == "__main__":
    sys.exit(main())
