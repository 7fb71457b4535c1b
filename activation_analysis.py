"""Feed the four categories of prompts to a model and save the entropy of every attention row.

    one forward pass per prompt, no sampling -> H = -sum_k A ln A for every layer, head and query, in nats
    -> results_activation_analysis/run_<time>/ (attention.npz, activations.json, prompts.jsonl, experiment_config.json)

    python activation_analysis.py --model_id bundled:smollm2-135m-instruct
    python activation_analysis.py --model_id meta-llama/Llama-3.1-8B-Instruct --prompt_format chat --dtype bfloat16
    python activation_analysis.py --output_type latest_base --raw none
    python activation_analysis.py --documents FILE.jsonl          long texts and conversations -> documents_<time>/
    python activation_analysis.py --repeat results_activation_analysis/run_20260101_120000

The newest run is linked as latest_run, or as latest_base with --output_type latest_base. --repeat runs a run again from its
own record and says whether attention.npz came back: exit code 0 bit-identical or within rounding, 1 different; the links stay.
"""

import sys
import time
from dataclasses import asdict
from pathlib import Path

from deterministic import set_determinism
from prompts import load_prompts
from rolecircuits.documents.texts import read_documents
from rolecircuits.engines.open import add_engine_arguments, check_engine_arguments, open_engine
from rolecircuits.inputs.arguments import (
    DEFAULT_RESULTS,
    LATEST_DOCUMENTS,
    LATEST_RUNS,
    add_model_arguments,
    add_verify_argument,
    check_model_arguments,
    check_output_dir,
    say_unverified,
)
from rolecircuits.inputs.errors import RunFailed, UserError, printable
from rolecircuits.inputs.parser import Parser, run_script
from rolecircuits.inputs.specs import ModelSpec, PromptFormat, Setting

WITHOUT = ("prompts", "prompts_per_category", "system_prompt")


def run_documents(args):
    """Run the whole file and return the exit code: 0, or 3 if some documents failed."""
    for name in WITHOUT:
        if getattr(args, name) is not None:
            raise UserError(
                f"--{name} with --documents: the documents are the texts; give one of them"
            )
    if args.prompt_format != "raw":
        raise UserError(
            "--prompt_format chat with --documents: messages take the chat template by themselves, "
            "text does not"
        )
    check_engine_arguments(args)
    if args.raw not in (None, "none"):
        raise UserError(f"--raw {args.raw} with --documents: patterns of documents are not saved")
    documents = read_documents(args.documents)
    from output_manager import (  # torch: after the arguments and the file are checked
        create_run,
        say_limits,
    )
    from rolecircuits.documents import shards, tables, tasks
    from rolecircuits.runs.record import describe_documents, describe_run

    say_limits(args.output_dir)

    with open_engine(args) as engine:
        folder = Path(args.output_dir, shards.SHARDS)
        done = tasks.run_documents(engine, documents, Setting.of(args), args.capture, folder)
    kept, arrays = done.complete()
    for document_id, reason in done.failed:
        print(f"failed: {printable(document_id)}: {reason}")
    if not kept:
        raise RunFailed(
            f"all {len(documents)} documents failed: {done.failed[0][1]}; try --dtype bfloat16 or "
            "shorter documents"
        )
    fed, timings = describe_documents(args, len(kept), done.failed), {"capture_s": done.seconds}
    script = "activation_analysis.py --documents"
    config = describe_run(script, args, done.facts, fed, done.determinism, timings)
    config |= {"capture": done.how}
    with create_run(args.output_dir, LATEST_DOCUMENTS, prefix="documents") as new:
        tables.save_documents(new.path, kept, arrays, config)
    print(
        f"{len(kept)} documents done, {len(done.failed)} failed: "
        f"{sum(document.n_tokens for document in kept)} tokens, "
        f"{sum(len(document.spans) for document in kept)} turns, {done.how['method']}, "
        f"{done.seconds:.1f} s -> {printable(new.final)}"
    )
    return 3 if done.failed else 0


def build_parser():
    parser = Parser(description=__doc__)
    add_model_arguments(parser)
    parser.add_argument(
        "--documents",
        help="JSONL file of long texts or conversations, in place of prompts (documents.py)",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--output_dir", default=DEFAULT_RESULTS)
    output.add_argument(
        "--output_type",
        choices=list(LATEST_RUNS),
        default="latest",
        help="which link names the new run",
    )
    output.add_argument(
        "--raw",
        choices=["none", "patterns", "full"],
        help="also save the patterns (default unless streaming), or patterns, MLP activations, embeddings and final norm",
    )
    output.add_argument(
        "--capture",
        choices=["auto", "patterns", "streaming"],
        default="auto",
        help="build every pattern, or stream row entropies without them; auto streams prompts of more than 512 tokens",
    )
    add_engine_arguments(parser)
    output.add_argument(
        "--repeat", metavar="RUN", help="run this run folder again and compare (repeat_run.py)"
    )
    add_verify_argument(output)
    return parser


def parse_args(argv=None):
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.no_verify and args.repeat is None:
        parser.error("--no_verify needs --repeat: without it no run is read")
    if args.repeat is not None:
        from rolecircuits.runs.repeat import check_given

        args.given = check_given(parser, argv)
    return args


def run(args):
    """Run the analysis and return the exit code: 0, or 3 if some prompts failed."""

    from output_manager import say_limits
    from rolecircuits.capture.instrument import load_model

    if args.repeat is not None:
        return repeat(args)
    check_model_arguments(args)
    check_output_dir(args.output_dir, link=LATEST_RUNS[args.output_type])
    if args.documents is not None:
        return run_documents(args)
    if args.engine != "local":
        raise UserError(
            f"--engine {args.engine} needs --documents; prompts take one short pass on one machine"
        )
    check_engine_arguments(args)
    if args.capture == "streaming" and args.raw in ("patterns", "full"):
        raise UserError(
            f"--raw {args.raw} with --capture streaming: no pattern is ever built; use --capture patterns"
        )
    prompts, notes = load_prompts(args.prompts, args.prompts_per_category)
    for note in notes:
        print(f"note: {note}")
    say_limits(args.output_dir)
    started = time.perf_counter()
    loaded = load_model(ModelSpec.of(args), args.seed)
    timings = {"load_s": time.perf_counter() - started}
    _, failed = analyze_model(loaded, prompts, args, timings)
    return 3 if failed else 0


def repeat(args):
    """Run a run again: 0 if attention.npz came back bit-identical or within rounding, 1 if it is different."""

    from output_manager import load_run, say_limits
    from rolecircuits.capture.instrument import load_model
    from rolecircuits.runs.repeat import Repetition

    say_unverified(args)
    run = load_run(args.repeat, verify=not args.no_verify)
    repetition = Repetition(run, build_parser(), args.given, load_prompts)
    check_model_arguments(repetition.args)
    check_output_dir(repetition.args.output_dir)
    say_limits(repetition.args.output_dir)
    repetition.announce()
    started = time.perf_counter()
    loaded = load_model(ModelSpec.of(repetition.args), repetition.args.seed)
    repetition.check_model(loaded.facts)
    timings = {"load_s": time.perf_counter() - started}
    analyze_model(loaded, repetition.prompts, repetition.args, timings, repetition)
    return repetition.report_verdict()


def analyze_model(loaded, prompts, args, timings=None, repetition=None):
    """Capture all prompts of a loaded model and publish the run; returns (run folder, failed prompts).

    repetition  the repeat_run.Repetition that this run is: it compares the arrays, and no link is moved
    """

    from rolecircuits.capture.attention import capture_attention, choose_capture
    from rolecircuits.capture.batches import BATCH_TOKENS
    from rolecircuits.capture.instrument import check_streaming
    from rolecircuits.capture.tokens import tokenize_prompts

    timings = dict(timings or {})
    determinism = set_determinism(args.seed)
    tokenized = tokenize_prompts(prompts, loaded.tokenizer, PromptFormat.of(args))
    method, raw, why = choose_capture(
        args.capture, args.raw, tokenized, loaded.facts, args.batch_size
    )
    if why:
        print(why)
    how = {"method": method, "raw": raw}
    if method == "streaming":
        how |= check_streaming(loaded)
    started = time.perf_counter()
    title = f"{printable(args.model_id)} {args.prompt_format}"
    captured = capture_attention(
        loaded,
        tokenized,
        args.batch_size,
        keep_patterns=raw != "none",
        title=title,
        streaming=method == "streaming",
        batch_tokens=BATCH_TOKENS if method == "streaming" else None,
    )
    timings["capture_s"] = time.perf_counter() - started
    if len(captured.arrays["category"]) == 0:
        raise RunFailed(
            f"all {len(tokenized)} prompts failed: {captured.failed[0][1]}; try a smaller model or --dtype bfloat16"
        )
    folder = save_run(
        loaded, prompts, tokenized, captured, args, timings, determinism, how, repetition
    )
    for prompt_id, reason in captured.failed:
        print(f"failed: {prompt_id}: {reason}")
    print(
        f"{len(tokenized) - len(captured.failed)} prompts done, {len(captured.failed)} failed: "
        f"{loaded.n_layers} layers x {loaded.n_heads} heads, "
        f"capture {timings['capture_s']:.1f} s -> {printable(folder)}"
    )
    return folder, captured.failed


def save_run(
    loaded, prompts, tokenized, captured, args, timings, determinism, how, repetition=None
):
    """Publish a run folder and return its path; `how` says which capture was used and what was saved."""

    from output_manager import create_run
    from rolecircuits.runs.arrays import Run
    from rolecircuits.runs.files import write_json, write_prompts
    from rolecircuits.runs.npz import write_npz
    from rolecircuits.runs.record import describe_prompts, describe_run
    from rolecircuits.stats.indices import summarize

    started = time.perf_counter()
    lost = {prompt_id for prompt_id, _ in captured.failed}
    kept = [p for p in tokenized if p.id not in lost]
    link, prefix = (
        (LATEST_RUNS[args.output_type], "run") if repetition is None else (None, "repeat")
    )
    with create_run(args.output_dir, link, prefix) as new:
        write_prompts(new.path / "prompts.jsonl", [asdict(p) for p in kept])
        write_npz(new.path / "attention.npz", captured.arrays)
        n_tokens = captured.arrays["n_tokens"]
        for layer, patterns in captured.patterns.items():
            write_npz(
                new.path / f"raw_blocks_{layer}_attn_pattern.npz",
                {"patterns": patterns, "n_tokens": n_tokens},
            )
        if how["raw"] == "full":
            save_activations(loaded, kept, args.batch_size, new.path)
        script, fed = "activation_analysis.py", describe_prompts(args, prompts, captured.failed)
        config = describe_run(script, args, loaded.facts, fed, determinism, timings)
        config["capture"] = how | {"batch_size": captured.batch_size}
        write_json(new.path / "activations.json", summarize(Run(None, config, **captured.arrays)))
        config["timings"]["save_s"] = time.perf_counter() - started
        write_json(new.path / "experiment_config.json", config)
        if repetition is not None:
            write_json(new.path / "repeat.json", repetition.compare(captured.arrays, config))
    return new.final


def save_activations(loaded, tokenized, batch_size, folder):
    """raw_blocks_{l}_mlp_post.npz, raw_embed.npz and raw_ln_final.npz: values [prompt, query, unit], zero-padded."""
    from rolecircuits.capture.activations import collect_activations
    from rolecircuits.runs.npz import write_npz

    names = {
        f"blocks.{layer}.mlp.hook_post": f"raw_blocks_{layer}_mlp_post"
        for layer in range(loaded.n_layers)
    }
    names |= {"hook_embed": "raw_embed", "ln_final.hook_normalized": "raw_ln_final"}
    n_tokens = [len(p.token_ids) for p in tokenized]
    for name, values in collect_activations(loaded, tokenized, list(names), batch_size).items():
        write_npz(folder / f"{names[name]}.npz", {"values": values, "n_tokens": n_tokens})


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
