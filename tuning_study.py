"""Does an index measure role compliance, or only that the model has moved? Tune
a model in three ways, measure it at every dose, and ask of each candidate
signal whether it tells them apart when the model has moved equally far.

    arm role       answers of a persona to questions about "you"
    arm facts      answers about a ship: as many facts, about nobody
    arm shuffled   the persona's questions, its answers shuffled every epoch
    run            one arm with one seed: the unit of every test
    drift          KL(step 0 || now) of the next token after neutral prompts,
                   in nats; "matched" runs are scaled to equal drift
    a signal's change is tuned - step 0; RFC and RSI > 0: self-referent is the
    more focused

    python tuning_study.py --quick          # 3 arms x 2 seeds x 2 doses
    python tuning_study.py                  # 3 arms x 5 seeds x 6 doses
    python tuning_study.py --data mine.jsonl --system_prompt ""

-> tuning_results/study_<hash>/: a run folder per checkpoint and set, doses.csv,
   layers.csv, signals.csv, arm_contrasts.csv, profile_agreement.csv,
   layer_counts.csv, summary.json, figures/ (docs/COLUMNS.md). Its name is the
   hash of all flags that its numbers depend on: the same command goes on
   where a killed one stood, and gives the same numbers. The newest complete one
   is linked as latest_study. Needs: pip install -r requirements-tuning.txt
"""

import argparse
import re
import time

from deterministic import set_determinism
from output_manager import say_limits
from rolecircuits.drawing.table_files import add_table_argument, writes_tables
from rolecircuits.inputs.arguments import (
    DEFAULT_TUNING,
    LATEST_STUDY,
    add_format_arguments,
    add_model_choice,
    add_run_arguments,
    check_model_arguments,
    check_output_dir,
    positive_int,
    positive_number,
)
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.parser import Parser, collector_paused, leave, run_script, say_notes
from rolecircuits.inputs.prompt_sets import SETS
from rolecircuits.inputs.specs import run_date
from rolecircuits.inputs.tuning_data import ARMS, data_sha256, read_examples
from rolecircuits.runs.progress import progress
from rolecircuits.tuning import extras

DOSES, SEEDS, PER_CATEGORY, LR = (10, 20, 30, 40, 50, 100), 5, 8, 5e-4
QUICK = {"seeds": 2, "doses": (5, 10), "sets": ["original", "crossed"], "questions": 6}
FULL_LR = 2e-5  # of all weights
PRIMARY = "rfc_normalised_crossed"
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    add_model_choice(parser)
    study = parser.add_argument_group("study")
    study.add_argument(
        "--data",
        metavar="FILE",
        help="JSON lines of arm, facet, question, answer, wrong_answer, keywords, split "
        "(default: the bundled persona and ship)",
    )
    study.add_argument(
        "--arms",
        nargs="+",
        choices=ARMS,
        metavar="ARM",
        help=f"of {', '.join(ARMS)} (default: all three)",
    )
    study.add_argument(
        "--seeds", type=positive_int, help=f"runs of each arm (default {SEEDS}; --quick: 2)"
    )
    study.add_argument(
        "--doses",
        type=doses_value,
        metavar="N,N,...",
        help="optimizer steps after which a run is measured "
        f"(default {','.join(map(str, DOSES))}; --quick: 5,10)",
    )
    study.add_argument(
        "--tuning", choices=["lora", "full"], default="lora", help="what is trained (default lora)"
    )
    study.add_argument(
        "--lr",
        type=positive_number,
        help=f"learning rate (default {LR}; --tuning full: {FULL_LR:.5f})",
    )
    study.add_argument(
        "--targets",
        nargs="+",
        metavar="LAYER",
        help=f"linear layers that get a LoRA (default {' '.join(TARGETS)})",
    )
    study.add_argument(
        "--sets",
        nargs="+",
        choices=SETS,
        metavar="SET",
        help=f"prompt sets measured, of {', '.join(SETS)} (default: all three; --quick: original "
        "crossed)",
    )
    study.add_argument(
        "--questions",
        type=positive_int,
        metavar="N",
        help="held-out questions of each kind that are asked at a stop (default all; --quick: 6)",
    )
    study.add_argument(
        "--primary",
        default=PRIMARY,
        metavar="SIGNAL",
        help=f"the signal tested alone, declared before the first step (default {PRIMARY})",
    )
    study.add_argument(
        "--quick",
        action="store_true",
        help="2 seeds, 2 doses, 2 sets, few questions; decides nothing",
    )
    study.add_argument(
        "--jobs",
        type=positive_int,
        help="training runs at a time, each a process with a model and its share of the "
        "cores (default: 2 on a processor with two cores or more; 1 on a GPU)",
    )
    add_format_arguments(parser.add_argument_group("prompts"), "chat")
    add_run_arguments(parser, PER_CATEGORY)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output_dir",
        default=DEFAULT_TUNING,
        help=f"where the study's folder is made (default {DEFAULT_TUNING})",
    )
    add_table_argument(output)
    args = parser.parse_args(argv)
    usual = {"arms": ARMS, "targets": TARGETS, "seeds": SEEDS, "doses": DOSES, "sets": SETS}
    usual["questions"] = None
    usual |= QUICK if args.quick else {}
    for flag, value in usual.items():
        if getattr(args, flag) is None:
            setattr(args, flag, value)
    args.arms = [arm for arm in ARMS if arm in args.arms]
    args.sets = [name for name in SETS if name in args.sets]
    args.lr = args.lr or (FULL_LR if args.tuning == "full" else LR)
    args.prompts, args.prompts_per_category = None, args.prompts_per_category or PER_CATEGORY
    return args


def doses_value(text):
    """Ascending numbers of steps from "10,20,30"."""
    if re.fullmatch(r"[1-9][0-9]{0,5}(,[1-9][0-9]{0,5}){0,19}", text):
        doses = tuple(map(int, text.split(",")))
        if list(doses) == sorted(set(doses)) and doses[-1] <= 9999:
            return doses
    raise argparse.ArgumentTypeError(
        f"{printable(text[:40])!r} is not numbers of steps in ascending order such as 10,20,50 "
        "(at most 9999)"
    )


@writes_tables
def run(args):
    """Run or continue the study; what can be refused is refused before the weights are read."""
    check_model_arguments(args)
    if args.prompt_format != "chat":
        raise UserError(
            f"--prompt_format {args.prompt_format}: a study tunes answers to questions, so it "
            "needs chat"
        )
    if args.dtype != "float32":
        raise UserError(
            f"--dtype {args.dtype}: small changes of the weights would be rounded away; a study "
            "needs float32"
        )
    if args.device_map:
        raise UserError("--device_map: a study trains on one device; give --device")
    check_output_dir(args.output_dir, link=LATEST_STUDY)
    read_examples(args.data)
    extras.check_installed()
    with collector_paused():
        from rolecircuits.drawing import tuning_tables  # scipy: after the arguments
        from rolecircuits.tuning import jobs, outcome, study  # torch: after the arguments

    say_limits(args.output_dir)
    started = time.perf_counter()
    args.date = args.date or run_date()  # that of all processes
    work = study.open_study(args)
    args.jobs = args.jobs or jobs.default_jobs(work.loaded.model.device)
    say_notes(work.sets[0].how_fed["notes"])
    determinism = set_determinism(args.seed)
    of_data = data_sha256(args.data), args.seed, work.sets[0].how_fed["how"].get("date")
    described = study.describe_study(work.plan, work.loaded.facts, *of_data)
    with study.study_folder(args.output_dir, described) as work.folder:
        outcome.write_config(work, described, determinism)
        with progress(work.plan.n_checkpoints, "tuning study", "checkpoint") as bar:
            jobs.run_study(work, args.jobs, bar)
        found = outcome.write_outcome(work, described)
        work.remove_states()
    outcome.link_study(args.output_dir, work.folder.name)
    tuning_tables.print_study(found)
    print(
        f"{len(work.plan.runs)} training runs, {work.plan.n_checkpoints} checkpoints, "
        f"{(time.perf_counter() - started) / 60:.1f} min -> {printable(work.folder)}"
    )


def main(argv=None):
    return run_script(parse_args, run, argv, again="goes on")


if __name__ == "__main__":
    leave(main())
