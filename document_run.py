"""activation_analysis.py --documents: capture a JSONL file of documents and publish their tables.

<output_dir>/document_shards/<hash>.npz    one finished document each; the same command continues
<output_dir>/documents_<time>/             published whole, latest_documents links to the newest
    documents.csv  turns.csv               means over layers and heads, one row a document or turn
    documents.npz                          the same per layer and head
    indices.csv                            RFC and RSI over documents, where the categories are there
    documents.jsonl  experiment_config.json  manifest.json
"""

import time

from document_tasks import batch_items, from_plain, ready_item
from documents import SHARDS, document_rows, index_rows, read_documents, shard_name, stacked_arrays, stream_documents
from output_manager import (
    SCHEMA_VERSION,
    create_run,
    git_state,
    package_versions,
    portable,
    write_csv,
    write_json,
    write_npz,
    write_prompts,
)
from rolecircuits.inputs.arguments import LINK
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.files import sha256_of
from work_engine import check_engine_arguments, open_engine

WITHOUT = ("prompts", "prompts_per_category", "system_prompt")


def run_documents(args):
    """Run the whole file and return the exit code: 0, or 3 if some documents failed."""
    for name in WITHOUT:
        if getattr(args, name) is not None:
            raise UserError(f"--{name} with --documents: the documents are the texts; give one of them")
    if args.prompt_format != "raw":
        raise UserError(
            "--prompt_format chat with --documents: messages take the chat template by themselves, text does not"
        )
    check_engine_arguments(args)
    if args.raw not in (None, "none"):
        raise UserError(f"--raw {args.raw} with --documents: patterns of documents are not saved")
    documents = read_documents(args.documents)
    from activation_analysis import BATCH_TOKENS

    with open_engine(args) as engine:
        ready = engine.prepare(ready_item(documents, args))
        facts, tokenized = ready["facts"], [from_plain(each) for each in ready["documents"]]
        method, how, determinism = ready["method"], ready["how"] | {"engine": engine.facts()}, ready["determinism"]
        if ready["why"]:
            print(ready["why"])

        def capture_batches(batches):
            items = batch_items(batches, ready["documents"], args, method, BATCH_TOKENS)
            places = {item.name: batch for item, batch in zip(items, batches, strict=True)}
            for item, found in engine.run(items):
                yield places[item.name], found

        started = time.perf_counter()
        title = f"{printable(args.model_id)} documents"
        shards = f"{args.output_dir}/{SHARDS}"
        results, failed = stream_documents(
            facts, tokenized, shards, method, capture_batches, args.batch_size, BATCH_TOKENS, title
        )
    seconds = time.perf_counter() - started
    kept = [i for i, arrays in enumerate(results) if arrays is not None]
    for document_id, reason in failed:
        print(f"failed: {printable(document_id)}: {reason}")
    if not kept:
        raise UserError(
            f"all {len(documents)} documents failed: {failed[0][1]}; try --dtype bfloat16 or shorter documents"
        )
    config = describe(args, facts, how, determinism, failed, seconds, len(kept))
    folder = save_documents(args.output_dir, [tokenized[i] for i in kept], [results[i] for i in kept], config)
    n_tokens = sum(tokenized[i].n_tokens for i in kept)
    print(
        f"{len(kept)} documents done, {len(failed)} failed: {n_tokens} tokens, "
        f"{sum(len(tokenized[i].spans) for i in kept)} turns, {method}, {seconds:.1f} s -> {printable(folder)}"
    )
    return 3 if failed else 0


def describe(args, facts, how, determinism, failed, seconds, n):
    """experiment_config.json of a documents run."""
    return portable(
        {
            "schema_version": SCHEMA_VERSION,
            "script": "activation_analysis.py --documents",
            "status": "partial" if failed else "complete",
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "arguments": vars(args),
            "model": facts,
            "documents": {
                "sha256": sha256_of(args.documents),
                "n": n,
                "failed": [{"id": document_id, "reason": reason} for document_id, reason in failed],
            },
            "capture": how,
            "seed": args.seed,
            "determinism": determinism,
            "packages": package_versions(),
            "git": git_state(),
            "timings": {"capture_s": seconds},
        }
    )


def save_documents(output_dir, documents, results, config):
    """Publish the tables of the documents that were captured; returns the folder."""
    arrays = stacked_arrays(documents, results)
    whole, turns = document_rows(documents, results)
    indices = index_rows(arrays)
    if not indices:
        print("note: RFC and RSI need documents of the categories self_referent and neutral; indices.csv is left out")
    with create_run(output_dir, LINK, prefix="documents") as new:
        write_csv(new.path / "documents.csv", whole)
        write_csv(new.path / "turns.csv", turns)
        write_npz(new.path / "documents.npz", arrays)
        if indices:
            write_csv(new.path / "indices.csv", indices)
        facts, method = config["model"], config["capture"]["method"]
        rows = [
            {
                "id": d.prompt.id,
                "category": d.prompt.category,
                "n_tokens": d.n_tokens,
                "turns": [{"role": role, "span": span} for role, span in zip(d.roles, d.spans, strict=True)],
                "shard": shard_name(facts, d, method) + ".npz",
            }
            for d in documents
        ]
        write_prompts(new.path / "documents.jsonl", rows)
        write_json(new.path / "experiment_config.json", config)
    return new.final
