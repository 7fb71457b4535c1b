"""The tables of a documents run: a row a document, a row a turn, RFC and RSI over documents."""

import numpy as np

from rolecircuits.documents.shards import VALUES, shard_name
from rolecircuits.inputs.categories import REQUIRED
from rolecircuits.runs.files import write_csv, write_json, write_prompts
from rolecircuits.runs.npz import write_npz
from rolecircuits.stats import moments
from rolecircuits.stats.indices import index_values


def document_rows(documents, results):
    """(rows of documents.csv, rows of turns.csv): means over layers and heads."""
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
    """documents.npz: labels, "whole_*" [document, layer, head], "turn_*" [turn, layer, head]."""
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
    """Rows of indices.csv: RFC and RSI over documents, layer by layer.

    None unless there are self-referent and neutral documents.
    """
    if not all((arrays["category"] == name).any() for name in REQUIRED):
        return []
    rows = []
    for kind in ("normalised", "sinkfree"):
        layers = arrays[f"whole_{kind}"].astype(np.float64).mean(axis=-1)
        indices = index_values(layers, arrays["category"])
        for layer in range(layers.shape[1]):
            values = {name: by_layer[layer] for name, by_layer in indices.items()}
            rows.append({"layer": layer, "kind": kind} | values)
    return rows


def save_documents(folder, documents, results, config, facts):
    """Write the tables of TokenizedDocuments and the arrays of their shards into a run's folder.

    facts  of the model as loaded: they name the shards; config["model"] may write ~ for the home
    """
    arrays = stacked_arrays(documents, results)
    whole, turns = document_rows(documents, results)
    write_csv(folder / "documents.csv", whole)
    write_csv(folder / "turns.csv", turns)
    write_npz(folder / "documents.npz", arrays)
    if indices := index_rows(arrays):
        write_csv(folder / "indices.csv", indices)
    else:
        print(
            "note: RFC and RSI need documents of the categories self_referent and neutral; "
            "indices.csv is left out"
        )
    method = config["capture"]["method"]
    rows = [
        {
            "id": d.prompt.id,
            "category": d.prompt.category,
            "n_tokens": d.n_tokens,
            "turns": [
                {"role": role, "span": span} for role, span in zip(d.roles, d.spans, strict=True)
            ],
            "shard": shard_name(facts, d, method),
        }
        for d in documents
    ]
    write_prompts(folder / "documents.jsonl", rows)
    write_json(folder / "experiment_config.json", config)
