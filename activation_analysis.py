"""Feed the four categories of prompts to a model and save the entropy of every
attention row.

    one forward pass per prompt, no sampling
    -> H = -sum_k A ln A for every layer, head and query, in nats
    -> results_activation_analysis/run_<time>/: attention.npz, activations.json,
       design.json, prompts.jsonl, experiment_config.json

    python activation_analysis.py
    python activation_analysis.py --prompts crossed --prompt_format chat
    python activation_analysis.py --output_type base --dtype bfloat16
    python activation_analysis.py --documents tests/data/long.jsonl  # minutes
    python activation_analysis.py \\
        --repeat results_activation_analysis/demo/latest_run

The newest run is linked as latest_run, or as latest_base with --output_type
base; documents (long texts and conversations) go to documents_<time>/.
--repeat runs a run again from its own record and says whether attention.npz
came back: exit code 0 bit-identical or within rounding, 1 different.
"""

import time
from functools import partial
from pathlib import Path

from deterministic import set_determinism
from output_manager import create_run, load_run, say_limits
from prompts import load_prompts
from rolecircuits.documents import texts
from rolecircuits.engines.open import add_engine_arguments, check_engine_arguments, open_engine
from rolecircuits.inputs.arguments import (
    LATEST_DOCUMENTS,
    LATEST_RUNS,
    add_model_arguments,
    add_output_argument,
    add_raw_argument,
    add_verify_argument,
    check_given_with_repeat,
    check_model_arguments,
    check_output_dir,
    run_type,
    say_unverified,
)
from rolecircuits.inputs.errors import RunFailed, UserError, printable
from rolecircuits.inputs.parser import (
    Parser,
    collector_paused,
    leave,
    run_script,
    say_failed,
    say_notes,
)
from rolecircuits.inputs.prompt_sets import check_turns
from rolecircuits.inputs.specs import ModelSpec, PromptFormat, Setting
from rolecircuits.runs import files, record

SMALLER = "try a smaller model, shorter texts or --dtype bfloat16"
CAPTURE_HELP = "patterns, or row entropies streamed; auto streams on CUDA and above 512 tokens"


def build_parser():
    parser = Parser(description=__doc__)
    add_model_arguments(parser)
    texts.add_document_arguments(parser)
    output = parser.add_argument_group("output")
    add_output_argument(output)
    kinds = {"type": run_type, "choices": list(LATEST_RUNS), "default": "instruct"}
    output.add_argument("--output_type", **kinds, help="linked as latest_base, latest_run")
    add_raw_argument(output)
    methods = ["auto", "patterns", "streaming"]
    output.add_argument("--capture", choices=methods, default="auto", help=CAPTURE_HELP)
    add_engine_arguments(parser)
    output.add_argument("--repeat", metavar="RUN", help="run this run folder again and compare")
    add_verify_argument(output)
    return parser


def parse_args(argv=None):
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.no_verify and args.repeat is None:
        parser.error("--no_verify needs --repeat: without it no run is read")
    if args.repeat is not None:
        args.given = check_given_with_repeat(parser, argv)
    return args


def run(args):
    """Run the analysis and return the exit code: 0, or 3 if some prompts failed."""
    if args.repeat is not None:
        return repeat(args)
    check_model_arguments(args)
    check_output_dir(args.output_dir, link=LATEST_RUNS[args.output_type])
    texts.check_document_arguments(args)
    if args.documents is not None:
        return run_documents(args)
    if args.engine != "local":
        raise UserError(
            f"--engine {args.engine} needs --documents; prompts take one short pass on one machine"
        )
    check_engine_arguments(args)
    if args.capture == "streaming" and args.raw != "none":
        raise UserError(f"--raw {args.raw} with --capture streaming: no pattern is ever built")
    prompts, notes = load_prompts(args.prompts, args.prompts_per_category)
    check_turns(prompts, args.prompt_format, args.prompts)
    say_notes(notes)
    say_limits(args.output_dir)
    started = time.perf_counter()
    loaded = load_for(prompts, args)
    timings = {"load_s": time.perf_counter() - started}
    _, failed = analyze_model(loaded, prompts, args, timings)
    return 3 if failed else 0


def repeat(args):
    """Run a run again: 0 if attention.npz came back, bit-identical or within rounding, else 1."""
    from rolecircuits.runs.repeat import Repetition  # numpy: only where a run is read

    say_unverified(args)
    run = load_run(args.repeat, verify=not args.no_verify)
    repetition = Repetition(run, build_parser(), args.given, load_prompts)
    check_model_arguments(repetition.args)
    check_output_dir(repetition.args.output_dir)
    say_limits(repetition.args.output_dir)
    repetition.announce()
    started = time.perf_counter()
    loaded = load_for(repetition.prompts, repetition.args)
    timings = {"load_s": time.perf_counter() - started}
    repetition.check_model(loaded.facts)
    analyze_model(loaded, repetition.prompts, repetition.args, timings, repetition)
    return repetition.report_verdict()


def load_for(prompts, args):
    """The LoadedModel of these flags; prompts that it cannot be fed are refused before weights."""
    with collector_paused():
        from rolecircuits.capture import (  # torch: after the arguments are checked
            instrument,
            tokens,
        )

    check = partial(tokens.tokenize_prompts, prompts, form=PromptFormat.of(args))
    return instrument.load_model(ModelSpec.of(args), args.seed, check)


def analyze_model(loaded, prompts, args, timings=None, repetition=None):
    """Capture all prompts of a loaded model and publish the run; returns (run folder, failed).

    repetition  the Repetition that this run is: it compares the arrays, and no link is moved
    """
    # torch: after the arguments are checked
    from rolecircuits.capture import activations, attention, feeding, frames, instrument, tokens

    timings, determinism = dict(timings or {}), set_determinism(args.seed)
    form = PromptFormat.of(args)
    tokenized = tokens.tokenize_all(prompts, loaded.tokenizer, form)
    tokenized, left_out = frames.keep_matched(tokenized)
    if left_out:
        print(f"note: {frames.describe_left_out(left_out, prompts)}")
        prompts = [prompt for prompt in prompts if prompt.frame not in left_out]
    how_fed = feeding.describe_feeding(tokenized, loaded.tokenizer, form)
    say_notes([*how_fed["notes"], *instrument.packing_notes(loaded)])
    if repetition is not None:
        repetition.check_fed(tokenized)
    how, raw = (args.capture, args.raw, tokenized, loaded.facts, args.batch_size), args.raw
    method, why = attention.choose_capture(*how)
    if why:
        print(why)
    activations.check_raw(loaded, tokenized, raw)
    verdict = instrument.check_streaming(loaded) if method == "streaming" else {}
    started, title = time.perf_counter(), f"{printable(args.model_id)} {args.prompt_format}"
    what = (loaded, tokenized, args.batch_size)
    if method == "streaming":
        captured = attention.capture_streaming(*what, title=title)
    else:
        captured = attention.capture_patterns(*what, raw != "none", title)
    timings["capture_s"] = time.perf_counter() - started
    if len(captured.failed) == len(tokenized):
        raise RunFailed(f"all {len(tokenized)} prompts failed: {captured.failed[0][1]}; {SMALLER}")
    fed = record.describe_prompts(args, prompts, how_fed, captured.failed, left_out)
    how = (args, loaded.facts, fed, determinism, timings)
    config = record.describe_run("activation_analysis.py", *how)
    how = {"method": method, "raw": raw, "batch_size": captured.batch_size}
    config["capture"] = how | verdict
    folder = save_run(loaded, tokenized, captured, config, args, repetition)
    say_failed(captured.failed)
    print(
        f"{len(tokenized) - len(captured.failed)} prompts done, {len(captured.failed)} failed: "
        f"{loaded.n_layers} layers x {loaded.n_heads} heads, "
        f"capture {timings['capture_s']:.1f} s -> {printable(folder)}"
    )
    return folder, captured.failed


def save_run(loaded, tokenized, captured, config, args, repetition):
    """Publish a run folder and return its path; config["capture"]["raw"] says what is saved."""
    from rolecircuits.capture import activations  # torch

    started = time.perf_counter()
    again = repetition is not None
    link, prefix = (None, "repeat") if again else (LATEST_RUNS[args.output_type], "run")
    with create_run(args.output_dir, link, prefix) as new:
        audit = activations.save_capture(new.path, loaded, tokenized, captured, config)
        config["timings"]["save_s"] = time.perf_counter() - started
        files.write_json(new.path / "experiment_config.json", config)
        if repetition is not None:
            comparison = repetition.compare(captured.arrays, config)
            files.write_json(new.path / "repeat.json", comparison)
    print(f"{'WARNING: ' if audit['flagged'] else ''}{audit['verdict']}")
    return new.final


def run_documents(args):
    """Run a whole file of documents and return the exit code: 0, or 3 if some of them failed."""
    check_engine_arguments(args)
    reading = texts.read_documents(args.documents, texts.fields_of(args), args.prompt_format)
    say_notes(texts.describe_reading(reading, args.documents))
    with collector_paused():
        from rolecircuits.documents import shards, tables, tasks  # torch: after the file is checked

    say_limits(args.output_dir)
    with open_engine(args) as engine:
        folder = Path(args.output_dir, shards.SHARDS)
        setting = Setting.of(args)
        done = tasks.run_documents(engine, reading.documents, setting, args.capture, folder)
    kept, arrays = done.complete()
    failed = reading.failed + done.failed
    say_failed(failed)
    if not kept:
        raise RunFailed(f"all {len(failed)} documents failed: {done.failed[0][1]}; {SMALLER}")
    config = tables.describe_documents_run(args, len(kept), done, failed, reading.facts)
    with create_run(args.output_dir, LATEST_DOCUMENTS, prefix="documents") as new:
        saved = tables.save_documents(new.path, kept, arrays, config, done.facts)
        tables.print_run(*saved)
    print(
        f"{len(kept)} documents done, {len(failed)} failed: "
        f"{sum(document.n_tokens for document in kept)} tokens, "
        f"{sum(len(document.spans) for document in kept)} turns, {done.how['method']}, "
        f"{done.seconds:.1f} s -> {printable(new.final)}"
    )
    return 3 if failed else 0


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    leave(main())
