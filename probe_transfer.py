"""Does tuning move where a model keeps the person? Linear probes trained in a base
model and asked in its instruct model, and the other way round.

A crossed set: inside a frame only the person differs. The residual stream at
the final query is read in every layer; a probe names the person of prompts
whose frames it has not seen, in either model.

    base, instruct    trained and asked in the same model
    base -> instruct  trained in base, asked in instruct, as it is; and back
    centred           the same after the mean over prompts is moved onto that
                      of the other model: a shared direction in another place
    named             share of held-out prompts whose person is named, with a
                      95 % interval over frames; knowing nothing names
                      null = 1 / persons
    nats              ln persons + mean ln p(person): below 0 where a probe is
                      wrong and sure

What a probe finds is there to be read; that the model reads it is another
question (interventions.py). Needs requirements-tuning.txt. Written to
--output_dir: probe_transfer.csv (every way and layer) and probe_transfer.json.

    python probe_transfer.py --base_id HuggingFaceTB/SmolLM2-135M \\
        --instruct_id HuggingFaceTB/SmolLM2-135M-Instruct
    python probe_transfer.py --base_id base --instruct_id tuned \\
        --prompts_per_category 36 --output_dir my_probes
"""

import sys
from pathlib import Path

from prompts import load_prompts
from rolecircuits.drawing.table_files import add_table_argument, writes_tables
from rolecircuits.inputs.arguments import (
    REVISION_HELP,
    add_format_arguments,
    add_run_arguments,
    check_model_arguments,
    check_output_dir,
)
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.parser import Parser, collector_paused, run_script, say_notes
from rolecircuits.inputs.prompt_sets import check_turns
from rolecircuits.inputs.specs import ModelSpec, PromptFormat
from rolecircuits.runs import files, record
from rolecircuits.tuning import extras

DEFAULT_OUTPUT = "probe_results"
NEEDED = ("sklearn", "concept_erasure")


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    model = parser.add_argument_group("models")
    for side in ("base", "instruct"):
        named = "hub id, local folder or bundled:smollm2-135m-instruct"
        model.add_argument(f"--{side}_id", required=True, metavar="ID", help=f"{side}: {named}")
        model.add_argument(f"--{side}_revision", metavar="REV", help=REVISION_HELP)
    text = parser.add_argument_group("prompts")
    sets = "crossed (the default), deixis, or your own crossed set"
    text.add_argument("--prompts", metavar="NAME|FILE", default="crossed", help=sets)
    add_format_arguments(text)
    add_run_arguments(parser)
    place = f"for what is written (default {DEFAULT_OUTPUT})"
    parser.add_argument("--output_dir", default=DEFAULT_OUTPUT, help=place)
    add_table_argument(parser)
    args = parser.parse_args(argv)
    args.trust_remote_code = False  # two models, and no flag that would pin the code of both
    return args


@writes_tables
def run(args):
    """Probe both models; what can be refused is refused before weights are read."""
    check_model_arguments(args)
    folder = check_output_dir(args.output_dir)
    prompts, notes = load_prompts(args.prompts, args.prompts_per_category)
    check_turns(prompts, args.prompt_format, args.prompts)
    if len({prompt.frame for prompt in prompts}) < 2 or not all(p.frame for p in prompts):
        raise UserError(
            f"--prompts {args.prompts}: probes leave frames out: they need a crossed set with at "
            "least 2 frames"
        )
    say_notes(notes)
    extras.check_installed("a probe", NEEDED)
    with collector_paused():
        from rolecircuits.tuning import transfer  # torch, scikit-learn: after the arguments

    sides = []
    for model_id, revision in (
        (args.base_id, args.base_revision),
        (args.instruct_id, args.instruct_revision),
    ):
        spec = ModelSpec(model_id, revision, args.dtype, args.device, args.device_map)
        how = (PromptFormat.of(args), args.batch_size, args.seed)
        sides.append(transfer.read_side(spec, prompts, *how))
        say_notes(sides[-1].notes)
    base, instruct, persons, frames = transfer.match_sides(*sides)
    n_frames = len(set(frames.tolist()))
    if left_out := sorted(set(sides[0].left_out) | set(sides[1].left_out)):
        print(f"note: {len(left_out)} frames left out: {', '.join(map(printable, left_out))}")
    rows, summary = transfer.list_transfer(
        transfer.probe_pair(base, instruct, persons, frames), args.seed
    )
    folder.mkdir(parents=True, exist_ok=True)
    files.write_csv(folder / "probe_transfer.csv", rows, facts=facts_of(args, sides))
    described = {"arguments": record.portable_arguments(args), "summary": summary}
    models = dict(zip(("base", "instruct"), (side.facts for side in sides), strict=True))
    described |= {"models": models, "frames": n_frames, "frames_left_out": left_out}
    files.write_json(folder / "probe_transfer.json", described)
    transfer.print_transfer(summary, n_frames)
    print(f"{len(persons)} prompts -> {printable(folder)}")


def facts_of(args, sides):
    """First columns of the CSV: what every row is of; no run folder is involved."""
    facts = {"model_base": sides[0].facts["id"], "model_instruct": sides[1].facts["id"]}
    facts["set"] = Path(args.prompts).stem
    for name, value in (("format", args.prompt_format), ("run", "probes")):
        facts |= {f"{name}_base": value, f"{name}_instruct": value}
    return facts


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
