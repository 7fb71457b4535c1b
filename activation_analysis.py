"""Feed the four categories of prompts to a model and save the entropy of every attention row.

    one forward pass per prompt, no sampling
    -> H = -sum_k A ln A for every layer, head and query, in nats
    -> results_activation_analysis/run_<time>/ (attention.npz, activations.json, prompts.jsonl,
       experiment_config.json)

    python activation_analysis.py --model_id bundled:smollm2-135m-instruct
    python activation_analysis.py --model_id someone/model --prompt_format chat --dtype bfloat16
    python activation_analysis.py --output_type latest_base --raw none
    python activation_analysis.py --documents FILE.jsonl      long texts and conversations
    python activation_analysis.py --repeat results_activation_analysis/run_20260101_120000

The newest run is linked as latest_run, or as latest_base with --output_type latest_base; documents
go to documents_<time>/. --repeat runs a run again from its own record and says whether
attention.npz came back: exit code 0 bit-identical or within rounding, 1 different; the links stay.
"""

import sys
import time
from dataclasses import asdict
from functools import partial

from deterministic import set_determinism
from prompts import load_prompts
from rolecircuits.engines.open import add_engine_arguments, check_engine_arguments, open_engine
from rolecircuits.inputs.arguments import (
    DEFAULT_RESULTS,
    LINKS,
    add_model_arguments,
    add_verify_argument,
    check_model_arguments,
    check_output_dir,
    say_unverified,
)
from rolecircuits.inputs.errors import RunFailed, UserError, printable
from rolecircuits.inputs.parser import Parser, run_script
from rolecircuits.inputs.specs import ModelSpec, PromptFormat

SMALLER = "try a smaller model, shorter texts or --dtype bfloat16"
RAW_HELP = (
    "also save the patterns (default unless streaming), or MLPs, embeddings and final norm too"
)
CAPTURE_HELP = "build every pattern, or stream row entropies without; auto streams above 512 tokens"


def build_parser():
    parser = Parser(description=__doc__)
    add_model_arguments(parser)
    parser.add_argument(
        "--documents", help="JSONL file of long texts or conversations, in place of prompts"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--output_dir", default=DEFAULT_RESULTS)
    output.add_argument(
        "--output_type", choices=list(LINKS), default="latest", help="which link names the new run"
    )
    output.add_argument("--raw", choices=["none", "patterns", "full"], help=RAW_HELP)
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
        from rolecircuits.runs.repeat import check_given  # numpy: only where a run is read

        args.given = check_given(parser, argv)
    return args


def run(args):
    """Run the analysis and return the exit code: 0, or 3 if some prompts failed."""
    if args.repeat is not None:
        return repeat(args)
    check_model_arguments(args)
    check_output_dir(args.output_dir, link=LINKS[args.output_type])
    if args.documents is not None:
        return run_documents(args)
    if args.engine != "local":
        raise UserError(
            f"--engine {args.engine} needs --documents; prompts take one short pass on one machine"
        )
    check_engine_arguments(args)
    if args.capture == "streaming" and args.raw in ("patterns", "full"):
        raise UserError(
            f"--raw {args.raw} with --capture streaming: no pattern is ever built; use --capture "
            "patterns"
        )
    prompts, notes = load_prompts(args.prompts, args.prompts_per_category)
    for note in notes:
        print(f"note: {note}")
    loaded, timings = load_for(prompts, args)
    _, failed = analyze_model(loaded, prompts, args, timings)
    return 3 if failed else 0


def repeat(args):
    """Run a run again: 0 if attention.npz came back, bit-identical or within rounding, else 1."""
    from rolecircuits.runs.repeat import Repetition  # numpy: only where a run is read

    say_unverified(args)
    repetition = Repetition(build_parser(), args.repeat, args.given)
    check_model_arguments(repetition.args)
    check_output_dir(repetition.args.output_dir)
    repetition.announce()
    loaded, timings = load_for(repetition.prompts, repetition.args)
    repetition.check_model(loaded.facts)
    analyze_model(loaded, repetition.prompts, repetition.args, timings, repetition)
    return repetition.report_verdict()


def load_for(prompts, args):
    """(LoadedModel, timings); prompts that it cannot be fed are refused before weights are read."""
    from rolecircuits.capture import instrument, tokens  # torch: after the arguments are checked

    started = time.perf_counter()
    check = partial(tokens.tokenize_prompts, prompts, form=PromptFormat.of(args))
    loaded = instrument.load_model(ModelSpec.of(args), args.seed, check)
    return loaded, {"load_s": time.perf_counter() - started}


def analyze_model(loaded, prompts, args, timings=None, repetition=None):
    """Capture all prompts of a loaded model and publish the run; returns (run folder, failed).

    repetition  the Repetition that this run is: it compares the arrays, and no link is moved
    """
    from rolecircuits.capture import activations, attention, instrument, tokens
    from rolecircuits.runs import record

    timings, determinism = dict(timings or {}), set_determinism(args.seed)
    tokenized = tokens.tokenize_prompts(prompts, loaded.tokenizer, PromptFormat.of(args))
    method, raw, why = attention.choose_capture(
        args.capture, args.raw, tokenized, loaded.facts, args.batch_size
    )
    if why:
        print(why)
    activations.check_raw(loaded, tokenized, raw)
    verdict = instrument.check_streaming(loaded) if method == "streaming" else {}
    started, title = time.perf_counter(), f"{printable(args.model_id)} {args.prompt_format}"
    batch, keep = args.batch_size, raw != "none"
    if method == "streaming":
        captured = attention.capture_streaming(loaded, tokenized, batch, title=title)
    else:
        captured = attention.capture_patterns(loaded, tokenized, batch, keep, title)
    timings["capture_s"] = time.perf_counter() - started
    if len(captured.failed) == len(tokenized):
        raise RunFailed(f"all {len(tokenized)} prompts failed: {captured.failed[0][1]}; {SMALLER}")
    config = record.describe_run(loaded, prompts, captured, args, timings, determinism)
    how = {"method": method, "raw": raw, "batch_size": captured.batch_size}
    config["capture"] = how | verdict
    folder = save_run(loaded, tokenized, captured, config, args, repetition)
    for prompt_id, reason in captured.failed:
        print(f"failed: {prompt_id}: {reason}")
    print(
        f"{len(tokenized) - len(captured.failed)} prompts done, {len(captured.failed)} failed: "
        f"{loaded.n_layers} layers x {loaded.n_heads} heads, "
        f"capture {timings['capture_s']:.1f} s -> {printable(folder)}"
    )
    return folder, captured.failed


def save_run(loaded, tokenized, captured, config, args, repetition):
    """Publish a run folder and return its path; config["capture"]["raw"] says what is saved."""
    from output_manager import create_run
    from rolecircuits.capture import activations
    from rolecircuits.runs import arrays, files, npz
    from rolecircuits.stats import indices

    started = time.perf_counter()
    lost = dict(captured.failed)
    kept = [p for p in tokenized if p.id not in lost]
    link, prefix = (LINKS[args.output_type], "run") if repetition is None else (None, "repeat")
    with create_run(args.output_dir, link, prefix) as new:
        files.write_prompts(new.path / "prompts.jsonl", [asdict(p) for p in kept])
        npz.write_npz(new.path / "attention.npz", captured.arrays)
        for layer, patterns in captured.patterns.items():
            raw = {"patterns": patterns, "n_tokens": captured.arrays["n_tokens"]}
            npz.write_npz(new.path / f"raw_blocks_{layer}_attn_pattern.npz", raw)
        if config["capture"]["raw"] == "full":
            activations.save_raw(loaded, kept, args.batch_size, new.path)
        summary = indices.summarize(arrays.Run(None, config, **captured.arrays))
        files.write_json(new.path / "activations.json", summary)
        config["timings"]["save_s"] = time.perf_counter() - started
        files.write_json(new.path / "experiment_config.json", config)
        if repetition is not None:
            comparison = repetition.compare(captured.arrays, config)
            files.write_json(new.path / "repeat.json", comparison)
    return new.final


def run_documents(args):
    """Run a whole file of documents and return the exit code: 0, or 3 if some of them failed."""
    from rolecircuits.capture.batches import BATCH_TOKENS
    from rolecircuits.documents import shards, tables, tasks, texts
    from rolecircuits.runs import record

    texts.check_document_arguments(args)
    check_engine_arguments(args)
    documents = texts.read_documents(args.documents)
    with open_engine(args) as engine:
        ready = engine.prepare(tasks.ready_item(documents, args))
        facts, method = ready["facts"], ready["method"]
        how = ready["how"] | {"engine": engine.facts()}
        tokenized = [tasks.from_plain(document) for document in ready["documents"]]
        if ready["why"]:
            print(ready["why"])

        def capture_batches(batches):
            items = tasks.batch_items(batches, ready["documents"], args, method, BATCH_TOKENS)
            places = {item.name: batch for item, batch in zip(items, batches, strict=True)}
            for item, result in engine.run(items):
                yield places[item.name], result

        started, title = time.perf_counter(), f"{printable(args.model_id)} documents"
        folder, limits = f"{args.output_dir}/{shards.SHARDS}", (args.batch_size, BATCH_TOKENS)
        results, failed = shards.stream_documents(
            facts, tokenized, folder, method, capture_batches, *limits, title
        )
    seconds = time.perf_counter() - started
    done = [i for i, arrays in enumerate(results) if arrays is not None]
    for document_id, reason in failed:
        print(f"failed: {printable(document_id)}: {reason}")
    if not done:
        raise RunFailed(f"all {len(failed)} documents failed: {failed[0][1]}; {SMALLER}")
    config = record.describe(args, facts, how, ready["determinism"], failed, seconds, len(done))
    kept = [tokenized[i] for i in done]
    folder = tables.save_documents(args.output_dir, kept, [results[i] for i in done], config)
    print(
        f"{len(done)} documents done, {len(failed)} failed: "
        f"{sum(d.n_tokens for d in kept)} tokens, {sum(len(d.spans) for d in kept)} turns, "
        f"{method}, {seconds:.1f} s -> {printable(folder)}"
    )
    return 3 if failed else 0


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
