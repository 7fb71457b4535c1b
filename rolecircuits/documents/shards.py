"""A finished document is a file, <output_dir>/document_shards/<hash>.npz, named by what determines its numbers.

The same command continues where it was stopped; a changed model, text or capture has another name.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.runs.npz import read_npz, write_npz
from rolecircuits.stats import entropy, moments

SHARDS = "document_shards"
SHARD_VERSION = 1
VALUES = ("normalised", "sinkfree", "sink_mass")


def shard_name(facts, document, method):
    """The hash that names a document's shard: everything that determines its numbers."""
    identity = {
        "version": SHARD_VERSION,
        "model": [
            facts[key] for key in ("id", "revision", "weights_sha256", "tokenizer_sha256", "dtype")
        ],
        "capture": method,
        "token_ids": document.prompt.token_ids,
        "roles": document.roles,
        "spans": document.spans,
        "id": document.prompt.id,
    }
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def capture_documents(loaded, documents, method, batch_size=64, batch_tokens=None):
    """([arrays of each document, None where it failed], [(id, reason)]); the arrays are those of `document_arrays`."""
    from rolecircuits.capture.attention import capture_patterns, capture_streaming

    prompts = [document.prompt for document in documents]
    if method == "streaming":
        captured = capture_streaming(loaded, prompts, batch_size, batch_tokens)
    else:  # the documents are one batch already
        captured = capture_patterns(loaded, prompts, batch_size)
    rows = {prompt_id: i for i, prompt_id in enumerate(captured.arrays["prompt_id"].tolist())}
    results = [
        document_arrays(captured.arrays, rows[d.prompt.id], d) if d.prompt.id in rows else None
        for d in documents
    ]
    return results, captured.failed


def document_arrays(arrays, i, document):
    """What is kept of a document: {"turn_*" [turn, layer, head], "whole_*" [layer, head], "row_*" [layer, query]} float32.

    turn   mean over the rows of a turn          whole  mean over the rows of all turns
    row    mean over heads of every row of the document, template tokens too; NaN where undefined
    """
    n = document.n_tokens
    visible = arrays["visible_keys"][:, :n]
    keys, keys_free = visible[:, None], entropy.sinkfree_keys(visible)[:, None]
    rows = {
        "normalised": entropy.normalise_entropy(arrays["entropy"][i, ..., :n], keys),
        "sinkfree": entropy.normalise_entropy(arrays["entropy_sinkfree"][i, ..., :n], keys_free),
        "sink_mass": arrays["sink_mass"][i, ..., :n],
    }
    query, kept = np.arange(n), {}
    inside = [(query >= start) & (query < stop) for start, stop in document.spans]
    for name, values in rows.items():
        kept[f"turn_{name}"] = np.stack([moments.mean_rows(values, mask) for mask in inside])
        kept[f"whole_{name}"] = moments.mean_rows(values, np.any(inside, axis=0))
        kept[f"row_{name}"] = moments.mean_rows(np.moveaxis(values, 1, -1), np.True_)
    kept = {name: values.astype(np.float32) for name, values in kept.items()}
    return kept | {"spans": np.array(document.spans, np.int64), "n_tokens": np.array(n, np.int64)}


def array_names():
    return [f"{part}_{name}" for part in ("turn", "whole", "row") for name in VALUES] + [
        "spans",
        "n_tokens",
    ]


def read_shard(path, document, facts):
    """The arrays of a finished document, or None where there is none or it is damaged (said, and done again)."""
    if not path.is_file():
        return None
    try:
        arrays = read_npz(path, array_names())
    except UserError as error:
        print(f"note: {printable(error)}; done again")
        return None
    shape = (len(document.spans), facts["n_layers"], facts["n_heads"])
    if (
        arrays["turn_normalised"].shape != shape
        or arrays["row_sink_mass"].shape[-1] != document.n_tokens
    ):
        print(f"note: {printable(path)}: does not fit its document; done again")
        return None
    return arrays


def stream_documents(
    facts, documents, folder, method, capture_batches, batch_size=64, batch_tokens=None, title=None
):
    """([arrays or None of each document], failed): finished shards are read, the others are captured and written.

    capture_batches  function of a list of batches (positions of documents) that yields (batch, what capture_documents
                     gives) in any order
    """
    from tqdm import tqdm

    from rolecircuits.capture.batches import make_batches

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{shard_name(facts, d, method)}.npz" for d in documents]
    results = [read_shard(path, d, facts) for path, d in zip(paths, documents, strict=True)]
    todo = [i for i, arrays in enumerate(results) if arrays is None]
    if len(todo) < len(documents):
        print(
            f"{len(documents) - len(todo)} of {len(documents)} documents were finished before, in {printable(folder)}"
        )
    failed = []
    batches = make_batches([documents[i].n_tokens for i in todo], batch_size, batch_tokens)
    total = sum(documents[i].n_tokens for i in todo)
    with tqdm(
        total=total, desc=title, unit="token", unit_scale=True, disable=title is None, leave=False
    ) as bar:
        for batch, (done, lost) in capture_batches([[todo[j] for j in each] for each in batches]):
            failed += lost
            for i, arrays in zip(batch, done, strict=True):
                results[i] = arrays
                if arrays is not None:
                    write_npz(paths[i], arrays)
            bar.update(sum(documents[i].n_tokens for i in batch))
    return results, failed
