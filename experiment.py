"""Let the model answer the prompts, greedily, and again under each intervention: which answers change?

    one greedy answer a prompt (temperature 0, no sampling) -> results_activation_analysis/generation_<time>/
    generation_results.json (category, prompt, token ids, text, measures), with a plan also answer_changes.csv

    python experiment.py --max_tokens 40 --prompt_format chat
    python experiment.py --max_tokens 20 --config_file targeted_interventions.json

Measures: share of first-person words, whether the answer names itself an AI or a model, length in tokens, share of repeated
trigrams. The newest run is linked as latest_generation.
"""

import sys
import time
from types import SimpleNamespace

from deterministic import set_determinism
from prompts import load_prompts
from rolecircuits.inputs.arguments import (
    DEFAULT_RESULTS,
    add_model_arguments,
    check_model_arguments,
    check_output_dir,
    positive_int,
)
from rolecircuits.inputs.categories import CATEGORIES
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.parser import Parser, run_script
from rolecircuits.inputs.specs import PromptFormat

LATEST = "latest_generation"
AVERAGED = ("first_person", "self_naming", "n_tokens", "repetition")


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
    parser.add_argument("--output_dir", default=DEFAULT_RESULTS)
    return parser.parse_args(argv)


def run(args):
    from rolecircuits.edits.bench import load_checked

    check_model_arguments(args)
    check_output_dir(args.output_dir, link=LATEST)
    plan = []
    if args.config_file:
        from rolecircuits.edits.plan import read_plan

        plan = read_plan(args.config_file)
    prompts, notes = load_prompts(args.prompts, args.prompts_per_category)
    for note in notes:
        print(f"note: {note}")
    started = time.perf_counter()
    loaded = load_checked(plan, args, prompts)
    run_generation(loaded, prompts, plan, args, {"load_s": time.perf_counter() - started})


def run_generation(loaded, prompts, plan, args, timings=None):
    """Answer every prompt, unedited and under each entry of the plan; returns (run folder, the results)."""

    from rolecircuits.capture.generation import check_room, generate_greedily
    from rolecircuits.capture.tokens import tokenize_prompts
    from rolecircuits.edits.bench import load_source
    from rolecircuits.edits.donors import collect_donors, edited_prompts
    from rolecircuits.edits.hooks import prepare_edit
    from rolecircuits.edits.plan import check_against_model
    from rolecircuits.runs.record import describe_run

    timings = dict(timings or {})
    check_against_model(plan, loaded.n_layers, loaded.n_heads, args.model_id)
    determinism = set_determinism(args.seed)
    tokenized = tokenize_prompts(prompts, loaded.tokenizer, PromptFormat.of(args))
    check_room(tokenized, args.max_tokens, loaded.facts["context"])
    for entry in plan:
        if not edited_prompts(entry, tokenized, args.seed).any():
            raise UserError(
                f"{entry.name}: no prompt has a partner of the same length; there is nothing to patch from"
            )
    donors = collect_donors(
        loaded, tokenized, plan, args.seed, args.batch_size, lambda s: load_source(s, args)
    )
    started = time.perf_counter()

    def answer(name, prepare=None):
        ids = generate_greedily(loaded, tokenized, args.max_tokens, args.batch_size, prepare, name)
        return describe_answers(loaded, tokenized, ids)

    baseline = answer("baseline")
    edited = {entry.name: answer(entry.name, prepare_edit(entry, donors)) for entry in plan}
    timings["generation_s"] = time.perf_counter() - started
    results = {
        "schema_version": 1,
        "max_tokens": args.max_tokens,
        "baseline": baseline,
        "summary": {
            name: summarize_answers(rows)
            for name, rows in ({"baseline": baseline} | edited).items()
        },
        "interventions": edited,
        "changes": [
            row for name, rows in edited.items() for row in compare_answers(name, baseline, rows)
        ],
    }
    named = SimpleNamespace(failed=[], arrays={"category": [p.category for p in tokenized]})
    config = describe_run(loaded, prompts, named, args, timings, determinism) | {
        "script": "experiment.py"
    }
    folder = save_results(
        results, config | {"interventions": [entry.model_dump() for entry in plan]}, args
    )
    print_results(results)
    print(
        f"{len(tokenized)} prompts answered {1 + len(plan)} times, {timings['generation_s']:.1f} s -> {printable(folder)}"
    )
    return folder, results


def describe_answers(loaded, tokenized, answers):
    """One row a prompt: category, prompt, token ids, text and measures."""
    from rolecircuits.capture.generation import measure_answer, stop_tokens

    stop, rows = stop_tokens(loaded), []
    for prompt, ids in zip(tokenized, answers, strict=True):
        text = loaded.tokenizer.hf.decode(ids, skip_special_tokens=True)
        row = {
            "id": prompt.id,
            "category": prompt.category,
            "prompt": prompt.text,
            "token_ids": ids,
            "text": text,
        }
        rows.append(row | {"measures": measure_answer(ids, text, bool(ids) and ids[-1] in stop)})
    return rows


def summarize_answers(rows):
    """Means of the measures: {category: {measure: mean, "n": prompts}}."""
    summary = {}
    for name in CATEGORIES:
        chosen = [row["measures"] for row in rows if row["category"] == name]
        if chosen:
            means = {m: sum(row[m] for row in chosen) / len(chosen) for m in AVERAGED}
            summary[name] = {"n": len(chosen)} | means
    return summary


def compare_answers(name, baseline, edited):
    """Side by side: one row a prompt of one intervention."""
    from rolecircuits.capture.generation import first_difference

    rows = []
    for before, after in zip(baseline, edited, strict=True):
        place = first_difference(before["token_ids"], after["token_ids"])
        labels = {"intervention": name} | {key: before[key] for key in ("id", "category", "prompt")}
        texts = {"baseline": before["text"], "edited": after["text"]}
        rows.append(labels | {"changed": place is not None, "first_difference": place} | texts)
    return rows


def save_results(results, config, args):
    from output_manager import create_run
    from rolecircuits.runs.files import write_csv, write_json

    with create_run(args.output_dir, LATEST, "generation") as new:
        write_json(new.path / "generation_results.json", results)
        if results["changes"]:
            rows = [
                row
                | {
                    "first_difference": ""
                    if row["first_difference"] is None
                    else row["first_difference"]
                }
                for row in results["changes"]
            ]
            write_csv(new.path / "answer_changes.csv", rows)
        write_json(new.path / "experiment_config.json", config)
    return new.final


def print_results(results):
    """Measures by category, and how many answers each intervention changed."""
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False)
    console.width = console.width if console.is_terminal else 132
    table = Table(
        "category",
        "n",
        "first person",
        "names itself",
        "tokens",
        "repetition",
        title="unedited answers",
    )
    for name, means in results["summary"]["baseline"].items():
        cells = [f"{means[m]:.3f}" if m != "n_tokens" else f"{means[m]:.1f}" for m in AVERAGED]
        table.add_row(name, str(means["n"]), *cells)
    console.print(table)
    if not results["changes"]:
        return
    names = list(results["summary"]["baseline"])
    changed = Table("intervention", *names, title="answers changed")
    for intervention in results["interventions"]:
        rows = [row for row in results["changes"] if row["intervention"] == intervention]
        cells = []
        for name in names:
            own = [row["changed"] for row in rows if row["category"] == name]
            cells.append(f"{sum(own)} of {len(own)}")
        changed.add_row(intervention, *cells)
    console.print(changed)


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
