"""The main numbers of a family: tables of both runs, the figure of every choice, all places."""

from pathlib import Path

from rolecircuits.drawing import multiverse_figure, tables
from rolecircuits.runs.load import load_run, resolve_run
from rolecircuits.stats.run_pairs import main_numbers


def print_main_numbers(name, studies):
    """Tables of both runs' indices, a figure of every choice of the analysis, and all places.

    studies  [models.families.Study] of the family, with what was found
    """
    numbers, formats, verify = {}, {}, not studies[0].args.no_verify
    for study in studies:
        runs = {side: load_run(link, verify) for side, link in study.runs.items()}
        numbers[study.label] = main_numbers(runs, study.found)
        formats |= {side: run.prompt_format for side, run in runs.items()}
    pair = studies[0].found.get("comparison", {}).get("pair", "")
    tables.print_main_numbers(name, numbers, formats, pair)
    choices = [row for study in studies for row in study.list_choices()]
    figures = None if studies[0].args.skip_visualization else Path("figures", name)
    multiverse_figure.save_multiverse(choices, name, Path("analysis_results", name), figures)
    for study in studies:
        names = {side: resolve_run(link).name for side, link in study.runs.items()}
        print("\n".join(study.list_places(names)))
