"""The tables of a documents run: a row a document, a row a turn, RFC and RSI over documents."""

import numpy as np

from output_manager import create_run
from rolecircuits.documents.shards import VALUES, shard_name
from rolecircuits.inputs.arguments import LATEST_DOCUMENTS
from rolecircuits.inputs.categories import REQUIRED
from rolecircuits.runs.files import write_csv, write_json, write_prompts
from rolecircuits.runs.npz import write_npz
from rolecircuits.stats import moments
from rolecircuits.stats.indices import index_values


def document_rows(documents, results):
    """(rows of documents.csv, rows of turns.csv): means over layers and heads; layers and heads are in documents.npz."""
    whole, turns = [], []
    for document, arrays in zip(documents, results, strict=True):
        name = {"id": document.prompt.id, "category": document.prompt.category}
        size = {"n_tokens": document.n_tokens, "n_turns": len(document.spans)}
        whole.append(name | size | {kind: _mean(arrays[f"whole_{kind}"]) for kind in VALUES})
        for i, (role, (start, stop)) in enumerate(zip(document.roles, document.spans, strict=True)):
            place = {"turn": i, "role": role, "start": start, "stop": stop}
            turns.append(name | place | {kind: _mean(arrays[f"turn_{kind}"][i]) for kind in VALUES})
    return whole, turns


def _mean(values):
    return float(moments.defined_mean(np.asarray(values, np.float64).reshape(-1)))


def stacked_arrays(documents, results):
    """documents.npz: labels, "whole_*" [document, layer, head], "turn_*" [turn, layer, head], turn_document [turn]."""
    count = [len(document.spans) for document in documents]
    arrays = {
        "document_id": np.array([d.prompt.id for d in documents]),
        "category": np.array([d.prompt.category for d in documents]),
        "n_tokens": np.array([d.n_tokens for d in documents], np.int64),
        "turn_document": np.repeat(np.arange(len(documents)), count),
        "turn_role": np.array([role for d in documents for role in d.roles]),
        "turn_span": np.array([span for d in documents for span in d.spans], np.int64),
    }
    for kind in VALUES:
        arrays[f"whole_{kind}"] = np.stack([r[f"whole_{kind}"] for r in results])
        arrays[f"turn_{kind}"] = np.concatenate([r[f"turn_{kind}"] for r in results])
    return arrays


def index_rows(arrays):
    """Rows of indices.csv: RFC and RSI over documents, layer by layer; none unless both needed categories are there."""
    if not all((arrays["category"] == name).any() for name in REQUIRED):
        return []
    rows = []
    for kind in ("normalised", "sinkfree"):
        indices = index_values(
            arrays[f"whole_{kind}"].astype(np.float64).mean(axis=-1), arrays["category"]
        )
        for layer in range(arrays[f"whole_{kind}"].shape[1]):
            rows.append(
                {"layer": layer, "kind": kind}
                | {name: values[layer] for name, values in indices.items()}
            )
    return rows


def save_documents(output_dir, documents, results, config):
    """Publish the tables of the documents that were captured; returns the folder."""
    arrays = stacked_arrays(documents, results)
    whole, turns = document_rows(documents, results)
    indices = index_rows(arrays)
    if not indices:
        print(
            "note: RFC and RSI need documents of the categories self_referent and neutral; indices.csv is left out"
        )
    with create_run(output_dir, LATEST_DOCUMENTS, prefix="documents") as new:
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
                "turns": [
                    {"role": role, "span": span}
                    for role, span in zip(d.roles, d.spans, strict=True)
                ],
                "shard": shard_name(facts, d, method) + ".npz",
            }
            for d in documents
        ]
        write_prompts(new.path / "documents.jsonl", rows)
        write_json(new.path / "experiment_config.json", config)
    return new.final
