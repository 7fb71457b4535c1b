"""Loaded runs -> the report: what is computed first, which sections there are, in which order."""

from rolecircuits.engines.fork_map import fork_map
from rolecircuits.inputs.arguments import run_type
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.report import heads, layers, numbers, overview
from rolecircuits.report.conversations import conversations_section
from rolecircuits.report.edits import edits_section
from rolecircuits.report.masses import masses_section
from rolecircuits.report.page import Page, build_page
from rolecircuits.report.palette import category_looks
from rolecircuits.report.prompts import prompts_section
from rolecircuits.report.section import SIDES, Context, Folders
from rolecircuits.report.summary import summary_section
from rolecircuits.report.tuning import tuning_section
from rolecircuits.runs.files import read_json
from rolecircuits.stats.indices import KIND_NAMES

# each a function of the Context that gives a Section, or None
SECTIONS = (
    summary_section,
    layers.layers_section,
    heads.heads_section,
    masses_section,
    prompts_section,
    layers.comparison_section,
    edits_section,
    conversations_section,
    tuning_section,
    overview.method_section,
)


def order_runs(runs):
    """{(set, side): Run} of loaded runs: crossed first, base before instruct.

    The side of a run is its --output_type. Two runs of one set and one type are taken as base and
    instruct in the order in which they are given.
    """
    groups = {}
    for run in runs:
        groups.setdefault(run.prompt_set, []).append(run)
    ordered = {}
    for name, group in sorted(groups.items(), key=lambda item: not item[1][0].crossed):
        if len(group) > len(SIDES):
            raise UserError(
                f"{len(group)} runs of the prompt set {printable(name)}: a report shows one model "
                "pair, at most a base and an instruct run of each set"
            )
        sides = [_side(run) for run in group]
        if len(set(sides)) < len(sides):
            sides = list(SIDES)
        ordered |= {
            (name, side): run
            for side in SIDES
            for s, run in zip(sides, group, strict=True)
            if s == side
        }
    return ordered


def _side(run):
    given = (run.config.get("arguments") or {}).get("output_type")
    return SIDES[0] if run_type(given) == SIDES[0] else SIDES[1]


def build_report(runs, folders=None, verified=True, command="", asked=()):
    """The HTML text of a report.

    runs      loaded runs of one model pair      folders   Folders of other results, or None
    verified  whether files were compared with their manifests
    command   the command that makes it again    asked     contrasts "a-b"
    """
    runs = order_runs(runs)
    context = Context(runs, folders=folders or Folders(), verified=verified, command=command)
    context.numbers, context.pairs = compute(context, asked)
    if context.folders.comparison is not None:
        summary = read_json(context.folders.comparison / "comparison_summary.json")
        notes = summary.get("notes") if isinstance(summary, dict) else None
        context.notes += [str(note) for note in notes] if isinstance(notes, list) else []
    sections = [section for build in SECTIONS if (section := build(context)) is not None]
    return build_page(sections, describe_page(context))


def compute(context, asked):
    """({(set, side): RunNumbers}, {set: PairNumbers}), side by side."""
    keys = list(context.runs)
    found = fork_map(lambda key: numbers.run_numbers(context.runs[key], asked), keys)
    of_runs = dict(zip(keys, found, strict=True))
    names = [name for name in context.sets if len(context.sides(name)) == len(SIDES)]

    def compare(name):
        runs = {side: context.runs[name, side] for side in SIDES}
        return numbers.pair_numbers(runs, {side: of_runs[name, side] for side in SIDES}, asked)

    return of_runs, dict(zip(names, fork_map(compare, names), strict=True))


def describe_page(context):
    """The Page of these runs: title, head, menus and the first state."""
    sets = []
    for name in context.sets:
        sides = context.sides(name)
        run, computed = context.runs[name, sides[0]], context.numbers[name, sides[0]]
        sets.append(
            {
                "id": name,
                "name": name,
                "sides": sides,
                "n_layers": run.n_layers,
                "n_heads": run.n_heads,
                "contrasts": [
                    {"id": c, "name": overview.contrast_name(contrast)}
                    for c, contrast in computed.contrasts.items()
                ],
            }
        )
    names = dict.fromkeys(n for found in context.numbers.values() for n in found.category.tolist())
    kinds = [{"id": kind, "name": name} for kind, name in KIND_NAMES.items()]
    first = next(iter(context.numbers[next(reversed(context.runs))].contrasts), None)
    state = {"set": context.sets[0], "side": context.sides(context.sets[0])[-1]}
    state |= {"kind": kinds[0]["id"], "contrast": first, "layers": None}
    return Page(
        overview.page_title(context),
        overview.page_head(context),
        {"sets": sets, "kinds": kinds, "looks": category_looks(list(names))},
        state,
    )
