"""Let the model answer the prompts, and again under each intervention: which
answers change?

    one greedy answer a prompt (temperature 0, no sampling)
    -> results_activation_analysis/generation_<time>/generation_results.json
       (category, prompt, token ids, text, measures), with a plan also
       answer_changes.csv

    python experiment.py --max_tokens 40 --prompt_format chat
    python experiment.py --max_tokens 20 --prompts_per_category 5 \\
        --config_file analysis_results/demo/base/ablation_candidates.json

--monitor also records what each token of the unedited answers attended to:
monitor.npz by layer and head, monitor.csv means. The answers stay the same.

Measures: share of first-person words, whether the answer names itself an AI or
a model, length in tokens, share of repeated trigrams. The newest run is linked
as latest_generation.
"""

import time

from deterministic import set_determinism
from output_manager import create_run, say_limits
from prompts import load_prompts
from rolecircuits.drawing.table_files import add_table_argument, writes_tables
from rolecircuits.edits import plan_source
from rolecircuits.inputs.arguments import (
    LATEST_GENERATION,
    add_model_arguments,
    add_output_argument,
    check_model_arguments,
    check_output_dir,
    positive_int,
)
from rolecircuits.inputs.errors import printable
from rolecircuits.inputs.parser import Parser, collector_paused, leave, run_script, say_notes
from rolecircuits.inputs.prompt_sets import check_turns
from rolecircuits.inputs.specs import Setting
from rolecircuits.runs import record


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    add_model_arguments(parser)
    parser.add_argument(
        "--max_tokens", type=positive_int, default=40, help="tokens generated at most (default 40)"
    )
    parser.add_argument(
        "--config_file",
        "--interventions",
        help="plan: answer again under each of its interventions",
    )
    watched = "record the attention of every token that is generated"
    parser.add_argument("--monitor", action="store_true", help=watched)
    add_output_argument(parser)
    add_table_argument(parser)
    return parser.parse_args(argv)


@writes_tables
def run(args):
    """Answer the prompts; what can be refused is refused before the weights are read."""
    check_model_arguments(args)
    check_output_dir(args.output_dir, link=LATEST_GENERATION)
    plan = []
    if args.config_file:
        from rolecircuits.edits.plan import read_plan  # pydantic: after the arguments are checked

        plan = read_plan(args.config_file)
    prompts, notes = load_prompts(args.prompts, args.prompts_per_category)
    check_turns(prompts, args.prompt_format, args.prompts)
    notes += plan_source.check_source(args.config_file, args, prompts) if plan else []
    say_notes(notes)
    with collector_paused():
        from rolecircuits.edits import answers, bench  # torch: after the arguments are checked

    say_limits(args.output_dir)
    started = time.perf_counter()
    loaded = bench.load_checked(plan, Setting.of(args), prompts)
    timings = {"load_s": time.perf_counter() - started}
    results, said = answer_model(loaded, prompts, plan, args, timings)
    answers.print_answers(results)
    print(said)


def answer_model(loaded, prompts, plan, args, timings=None, link=LATEST_GENERATION):
    """Answers of a loaded model, unedited and under each entry of a plan, published.

    returns  (what generation_results.json holds, a line that says how many there are and where)
    """
    from rolecircuits.capture import feeding, tokens  # torch: after the arguments are checked
    from rolecircuits.edits import answers, monitored  # torch, as above

    setting, timings = Setting.of(args), dict(timings or {})
    tokenized = tokens.tokenize_prompts(prompts, loaded.tokenizer, setting.form)
    how_fed = feeding.describe_feeding(tokenized, loaded.tokenizer, setting.form)
    say_notes(how_fed["notes"])
    determinism = set_determinism(args.seed)
    started = time.perf_counter()
    monitor = monitored.make_monitor(loaded, tokenized) if args.monitor else None
    how = (setting, args.max_tokens, monitor)
    results = answers.answer_prompts(loaded, prompts, plan, *how)
    timings["generation_s"] = time.perf_counter() - started
    answered = results["baseline"]
    fed = record.describe_fed(args, prompts, how_fed, [row["id"] for row in answered])
    config = record.describe_run("experiment.py", args, loaded.facts, fed, determinism, timings)
    entries = record.portable([entry.model_dump() for entry in plan])
    with create_run(args.output_dir, link, "generation") as new:
        config["interventions"] = entries
        answers.save_answers(new.path, results, config)
        if monitor is not None:
            monitored.save_monitored(new.path, monitor, tokenized, answered, config)
    times = f"{1 + len(plan)} times" if plan else "once"
    said = f"{len(answered)} prompts answered {times}, {timings['generation_s']:.1f} s"
    return results, f"{said} -> {printable(new.final)}"


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    leave(main())
