"""The files of a documents run, and the tables that it ends with.

    documents.csv  a row a document            turns.csv    a row a turn
    indices.csv    RFC and RSI by layer        drift.csv    first against last third of the turns
    documents.npz  layers and heads            figures/     as drawing.document_figures draws them

Signs: RFC and RSI above 0, self-referent is the more focused; drifts as stats.document_stats.
"""

import numpy as np

from rolecircuits.documents.shards import SHARDED, VALUES, shard_name
from rolecircuits.drawing import document_figures, style
from rolecircuits.drawing.tables import print_table, right
from rolecircuits.inputs.arguments import ALPHA
from rolecircuits.inputs.categories import order_categories
from rolecircuits.inputs.errors import printable
from rolecircuits.runs.document_results import run_columns, run_label
from rolecircuits.runs.files import write_csv, write_json, write_prompts
from rolecircuits.runs.npz import write_npz
from rolecircuits.runs.record import describe_documents, describe_run
from rolecircuits.stats import moments
from rolecircuits.stats.document_stats import (
    drift_rows,
    has_indices,
    index_rows,
    infer_document_indices,
    infer_drifts,
    turn_columns,
    turn_means,
)
from rolecircuits.stats.masses import SEGMENTS

KIND_NAMES = {"normalised": "normalised", "sinkfree": "sink-free", "sink_mass": "sink mass"}


def describe_documents_run(args, n, done, failed, read):
    """experiment_config.json of a documents run.

    n  documents captured    done  CapturedDocuments    read  facts of texts.Reading
    """
    fed = describe_documents(args, n, done.feeding, failed, read)
    how = (done.facts, fed, done.determinism, {"capture_s": done.seconds})
    config = describe_run("activation_analysis.py --documents", args, *how)
    return config | {"capture": done.how}


def document_rows(documents, arrays):
    """(rows of documents.csv, rows of turns.csv): means over layers and heads.

    arrays  of documents.npz
    """
    whole, turns, columns = [], [], turn_columns(arrays)
    for d, document in enumerate(documents):
        name = {"id": document.prompt.id, "category": document.prompt.category}
        size = {"n_tokens": document.n_tokens, "n_turns": len(document.spans)}
        whole.append(name | size | {kind: _mean(arrays[f"whole_{kind}"][d]) for kind in VALUES})
        for i, (role, (start, stop)) in enumerate(zip(document.roles, document.spans, strict=True)):
            place = {"turn": i, "role": role, "start": start, "stop": stop}
            values = {column: float(own[len(turns)]) for column, own in columns.items()}
            turns.append(name | place | values)
    return whole, turns


def _mean(values):
    return float(moments.defined_mean(np.asarray(values, np.float64).reshape(-1)))


def stacked_arrays(documents, results):
    """documents.npz: labels, "whole_*" [document, layer, head], "turn_*" [turn, layer, head], and
    what turns attend to, as in `shards`.
    """
    count = [len(document.spans) for document in documents]
    arrays = {
        "document_id": np.array([d.prompt.id for d in documents]),
        "category": np.array([d.prompt.category for d in documents]),
        "frame": np.array([d.prompt.frame for d in documents]),
        "n_tokens": np.array([d.n_tokens for d in documents], np.int64),
        "turn_document": np.repeat(np.arange(len(documents)), count),
        "turn_role": np.array([role for d in documents for role in d.roles]),
        "turn_span": np.array([span for d in documents for span in d.spans], np.int64),
    }
    for kind in VALUES:
        arrays[f"whole_{kind}"] = np.stack([r[f"whole_{kind}"] for r in results])
        arrays[f"turn_{kind}"] = np.concatenate([r[f"turn_{kind}"] for r in results])
    for name in ("turn_segment_mass", "turn_segment_uniform"):
        arrays[name] = np.concatenate([r[name] for r in results])
    return arrays | {"segment": np.array(SEGMENTS)}


def save_documents(folder, documents, results, config, facts, draw=True):
    """Write a run's folder from TokenizedDocuments and the arrays of their shards; returns what
    `print_run` prints.

    facts  of the model as loaded: they name the shards; config["model"] may write ~ for the home
    """
    arrays = stacked_arrays(documents, results)
    whole, turns = document_rows(documents, arrays)
    indices = infer_document_indices(arrays) if has_indices(arrays) else {}
    drifts = infer_drifts(arrays)
    tables = {"documents": whole, "turns": turns, "indices": index_rows(indices)}
    tables["drift"] = drift_rows(drifts)
    named = run_columns(config)
    for name, rows in tables.items():
        if rows:
            write_csv(folder / f"{name}.csv", [named | row for row in rows])
    write_npz(folder / "documents.npz", arrays)
    drawings = document_figures.draw_documents(arrays, config) if draw else {}
    for name, drawing in drawings.items():
        style.save_drawing(folder / "figures", name, drawing)
    method = config["capture"]["method"]
    rows = [
        {
            "id": d.prompt.id,
            "category": d.prompt.category,
            "frame": d.prompt.frame,
            "n_tokens": d.n_tokens,
            "turns": [
                {"role": role, "span": span} for role, span in zip(d.roles, d.spans, strict=True)
            ],
            "shard": shard_name(facts, d, method) if method in SHARDED else None,
        }
        for d in documents
    ]
    write_prompts(folder / "documents.jsonl", rows)
    write_json(folder / "experiment_config.json", config)
    return arrays, run_label(config), indices, drifts


def print_run(arrays, label, indices, drifts):
    """The tables of a documents run, of what `save_documents` returns."""
    print_documents(arrays, label)
    print_indices(indices)
    print_drifts(drifts)


def print_documents(arrays, label):
    """Means over documents, by category, and over turns, by role."""
    category, role = arrays["category"], arrays["turn_role"]
    owner, length = arrays["turn_document"], np.diff(arrays["turn_span"])[:, 0]
    whole = {kind: _document_means(arrays, kind) for kind in VALUES}
    turns = {kind: turn_means(arrays, kind) for kind in VALUES}
    rows = []
    names = [name for name in order_categories(category.tolist()) if name]
    looks = style.category_looks(names)
    groups = {"all documents": np.ones(len(category), bool)}
    groups |= {looks[name].label: category == name for name in names}
    for name, own in groups.items():
        size = [own.sum(), np.isin(owner, np.flatnonzero(own)).sum(), arrays["n_tokens"][own].sum()]
        rows.append([name, *size, *_cells(whole, own)])
    if len(role) > len(category):
        for name in dict.fromkeys(role.tolist()):
            own = role == name
            size = [len(np.unique(owner[own])), own.sum(), length[own].sum()]
            rows.append([f"{name} turns", *size, *_cells(turns, own)])
    headings = ["docs", "turns", "tokens", *KIND_NAMES.values()]
    print_table(["", *map(right, headings)], rows, f"{label}: means")


def _document_means(arrays, kind):
    values = arrays[f"whole_{kind}"].astype(np.float64)
    return moments.defined_mean(values.reshape(len(values), -1))


def _cells(values, own):
    return [_number(moments.defined_mean(by_row[own]), "{:.3f}") for by_row in values.values()]


def _number(value, form="{:+.3f}"):
    return "-" if np.isnan(value) else form.format(value)


def interval_cell(row):
    """An estimate with its interval in one cell; - where it is undefined."""
    estimate, low, high = (_number(float(row[name])) for name in ("estimate", "low", "high"))
    return estimate if "-" in (low, high) else f"{estimate} [{low}, {high}]"


def print_indices(indices):
    """RFC and RSI, means over layers, and how many layers pass each correction."""
    if not indices:
        print(
            "note: RFC and RSI need documents of the categories self_referent and neutral; "
            "indices.csv is left out"
        )
        return
    rows, reasons = [], []
    for (kind, index), found in sorted(indices.items(), key=lambda item: item[0][1]):
        layers, reason = found["layers"], found["reason"]
        passed = [int((layers[name] < ALPHA).sum()) for name in ("p", "q", "p_max")]
        passed = "-" if reason else f"{' / '.join(map(str, passed))} of {len(layers['p'])}"
        rows.append([f"{index.upper()} {KIND_NAMES[kind]}", interval_cell(found["mean"]), passed])
        reasons += [f"{index.upper()}: {reason}"] if reason else []
    columns = ["", right("mean over layers [95 %]"), right("p / BH / max-T < 0.05")]
    title = "RFC and RSI; above 0: self-referent is the more focused"
    print_table(columns, rows, title)
    if len(reasons) < len(rows):
        print("note: intervals draw documents that begin with the same word together")
    for reason in dict.fromkeys(reasons):
        print(f"note: {printable(reason)}")


def print_drifts(drifts):
    """How focus and sink mass change along conversations, by role."""
    if not drifts:
        return
    rows = [
        [f"{row['role']}, {KIND_NAMES[row['kind']]}", row["n"], interval_cell(row), _p(row["p"])]
        for row in drifts
    ]
    columns = ["", *map(right, ("conversations", "last - first third [95 %]", "p"))]
    title = "above 0: later turns are more focused, or more on the sink"
    print_table(columns, rows, title)
    for reason in dict.fromkeys(row["reason"] for row in drifts if row["reason"]):
        print(f"note: {printable(reason)}")


def _p(p):
    return "-" if np.isnan(p) else f"{p:.3f}"
