"""A documents run in a report: entropy and sink mass turn by turn, RFC and RSI by layer.

The run holds roles and the places of turns, not their texts: those are read from the file that was
fed, where it is still the same (its SHA-256 is in the run's config).
"""

import numpy as np

from rolecircuits.inputs.errors import printable
from rolecircuits.report.overview import category_name
from rolecircuits.report.packing import pack_numbers
from rolecircuits.report.section import INDEX_NAMES, Context, Section, show_interval, show_number
from rolecircuits.runs.document_results import DOCUMENTS, read_documents_run, run_columns
from rolecircuits.stats.document_stats import (
    SHARES,
    VALUES,
    drift_rows,
    has_indices,
    index_rows,
    infer_document_indices,
    infer_drifts,
    segment_share,
    turn_drifts,
)
from rolecircuits.stats.moments import defined_mean

SEE = (
    "Whether attention grows more diffuse, the sink stronger, or the system text less attended to, "
    "as a conversation goes on: each line is one conversation, a point is one turn."
)
KIND_NAMES = {
    "normalised": "normalised entropy",
    "sinkfree": "sink-free entropy",
    "sink_mass": "sink mass",
}
DRIFTS = {  # positive: what the sign of document_stats says
    "normalised": "gain of focus (normalised)",
    "sinkfree": "gain of focus (sink-free)",
    "sink_mass": "gain of sink mass",
}
SHARE_NAMES = {
    "system_text": "the system text",
    "user_text": "the user's text",
    "assistant_text": "the model's own text",
}
ENDS = ("estimate", "low", "high")
STATIC_ROWS = 60
MAX_DOCUMENTS = 200  # whose turns the page holds
MAX_TURNS = 2000
MAX_HEADS = 1_500_000  # values of single heads that the page holds
MAX_LETTERS, MAX_TEXT = 2000, 600_000  # of a turn, and of all turns


def conversations_section(context: Context):
    """The Section, or None without a documents run."""
    folder = context.folders.documents
    if folder is None:
        return None
    arrays, config = read_documents_run(folder)
    frames = read_frames(folder)
    arrays |= {} if frames is None else {"frame": frames}
    texts = turn_texts(arrays, context.folders.texts or {})
    kept, (indices, drifts) = documents_kept(arrays), infer_all(arrays)
    rows, roles = document_rows(arrays, kept), list(turn_drifts(arrays))
    facts = run_columns(config)
    data = {
        "facts": facts,
        "documents": rows,
        "roles": roles,
        "kinds": KIND_NAMES,
        "drifts": DRIFTS,
        "shares": SHARE_NAMES,
        "turns": plain_turns(arrays, kept, texts),
        "indices": plain_indices(indices),
    }
    failed = config["documents"].get("failed") or []
    columns, cells = static_table(rows, roles)
    static = {
        "of": printable(config["model"]["id"]),
        "n": len(arrays["document_id"]),
        "n_turns": len(arrays["turn_document"]),
        "kept": len(kept),
        "failed": [{"id": printable(row["id"]), "reason": row["reason"]} for row in failed],
        "has_texts": bool(texts),
        "file": printable(config["arguments"]["documents"]),
        "columns": columns,
        "rows": cells,
        "drifts": [drift_cells(row) for row in drifts],
        "indices": index_means(indices),
        "old": frames is None and has_indices(arrays),
        "share_columns": ["turn", "role", "tokens", *SHARE_NAMES.values()],
        "shares": share_cells(arrays),
        "shares_of": printable(arrays["document_id"][first_talk(arrays)]),
    }
    tables = {
        "drift.csv": [facts | row for row in drift_rows(drifts)],
        "document_drifts.csv": [facts | row for row in rows],
        "indices.csv": [facts | row for row in index_rows(indices)],
    }
    tables = {name: own for name, own in tables.items() if own}
    return Section("conversations", "Conversations", SEE, static, data, tables)


def read_frames(folder):
    """The first word of every document, [document]; None of runs of before they were kept."""
    with np.load(folder / DOCUMENTS, allow_pickle=False) as archive:
        return archive["frame"] if "frame" in archive.files else None


def documents_kept(arrays):
    """Positions of the documents whose turns the page holds: the first ones, as many as fit."""
    n_turns = np.bincount(arrays["turn_document"], minlength=len(arrays["document_id"]))
    fits = np.cumsum(n_turns) <= MAX_TURNS
    return np.flatnonzero(fits)[:MAX_DOCUMENTS]


def plain_turns(arrays, kept, texts):
    """What conversations.js needs of the turns of these documents."""
    rows = np.flatnonzero(np.isin(arrays["turn_document"], kept))
    owner = np.searchsorted(kept, arrays["turn_document"][rows])
    turns = {
        "document": owner,
        "role": arrays["turn_role"][rows],
        "span": arrays["turn_span"][rows],
        "text": [texts[row] for row in rows.tolist()] if texts else None,
        "layers": {kind: pack_numbers(layer_means(arrays, kind, rows)) for kind in VALUES},
    }
    if "turn_segment_mass" in arrays:
        places = [arrays["segment"].tolist().index(name) for name in SHARES]
        mass = arrays["turn_segment_mass"][rows][..., places].astype(np.float64)
        turns["shares"] = pack_numbers(defined_mean(mass, axis=2))  # [turn, layer, segment]
        turns["uniform"] = pack_numbers(arrays["turn_segment_uniform"][rows][..., places])
    n_values = len(VALUES) * arrays["turn_normalised"][rows].size
    if n_values <= MAX_HEADS:
        own = {kind: pack_numbers(arrays[f"turn_{kind}"][rows], 8) for kind in VALUES}
        turns["heads"] = own
    return turns


def first_talk(arrays):
    """Position of the first document of which it is known what its turns attend to, or 0."""
    known = np.isfinite(segment_share(arrays, SHARES[0])[0])
    return int(arrays["turn_document"][np.argmax(known)])


def share_cells(arrays):
    """Rows of texts, a turn of the first conversation each: its share of attention on the system's,
    the user's and the model's text, beside what it would be if all visible tokens got alike.
    """
    shares = {name: segment_share(arrays, name) for name in SHARES}
    own = np.flatnonzero(arrays["turn_document"] == first_talk(arrays))
    cells = []
    for number, row in enumerate(own.tolist()):
        if np.isnan(shares[SHARES[0]][0][row]) or number >= STATIC_ROWS:
            continue
        n_tokens = int(np.diff(arrays["turn_span"][row])[0])
        parts = [f"{mass[row]:.3f} ({uniform[row]:.3f})" for mass, uniform in shares.values()]
        cells.append([number, str(arrays["turn_role"][row]), n_tokens, *parts])
    return cells


def layer_means(arrays, kind, rows):
    """Mean over heads of a value of these turns: [turn, layer]."""
    return defined_mean(arrays[f"turn_{kind}"][rows].astype(np.float64))


def turn_texts(arrays, texts):
    """The text of every turn, cut to MAX_LETTERS, or [] where they are not those of the run.

    texts  {document id: [(role, text), ...]}
    """
    turns = [own for name in arrays["document_id"].tolist() for own in texts.get(name, [])]
    roles = [role for role, _ in turns]
    if not turns or roles != arrays["turn_role"].tolist():
        return []
    cut, left = [], MAX_TEXT
    for _, text in turns:
        shown = text[: max(0, min(MAX_LETTERS, left))]
        left -= len(shown)
        rest = len(text) - len(shown)
        cut.append(f"{shown} [{rest:,} more characters]" if rest else shown)
    return cut


def infer_all(arrays):
    """(RFC and RSI of documents or {}, rows of drifts), as document_stats gives them."""
    known = "frame" in arrays and has_indices(arrays)
    return infer_document_indices(arrays) if known else {}, infer_drifts(arrays)


def plain_indices(indices):
    """{kind: {index: {"estimate", "low", "high", ...: [layer]}}} of infer_document_indices."""
    found = {}
    for (kind, index), own in indices.items():
        found.setdefault(kind, {})[index] = own["layers"]
    return found


def index_means(indices):
    """Rows of the table of RFC and RSI: index, kind, mean over layers, why it has no interval."""
    return [
        (
            INDEX_NAMES[index],
            KIND_NAMES[kind],
            show_interval(*(float(own["mean"][name]) for name in ENDS)),
            own["reason"] or "",
        )
        for (kind, index), own in sorted(indices.items(), key=lambda item: item[0][1])
    ]


def drift_cells(row):
    """A row of drifts as texts: role, quantity, conversations, drift with interval, p, reason."""
    p = "-" if np.isnan(row["p"]) else f"{row['p']:.4f}"
    shown = show_interval(*(row[name] for name in ENDS))
    return row["role"], DRIFTS[row["kind"]], row["n"], shown, p, row["reason"] or ""


def document_rows(arrays, kept):
    """A row a document: its size, means over layers and heads, drift of each role."""
    rows, drifts = [], turn_drifts(arrays)
    for document in kept.tolist():
        row = {"id": printable(arrays["document_id"][document])}
        row |= {"category": str(arrays["category"][document])}
        row |= {"turns": int((arrays["turn_document"] == document).sum())}
        row |= {"tokens": int(arrays["n_tokens"][document])}
        for kind in VALUES:
            row[kind] = float(defined_mean(arrays[f"whole_{kind}"][document].ravel().astype(float)))
            for role, by_kind in drifts.items():
                row[f"{role}_{kind}_drift"] = float(by_kind[kind][document])
        rows.append(row)
    return rows


def static_table(rows, roles):
    """(columns, rows) of texts of the table without JavaScript."""
    columns = ["document", "category", "turns", "tokens", *KIND_NAMES.values()]
    columns += [f"{DRIFTS['normalised']}, {role}" for role in roles]
    cells = []
    for row in rows[:STATIC_ROWS]:
        own = [row["id"], category_name(row["category"]) or "-", row["turns"], row["tokens"]]
        own += [f"{row[kind]:.3f}" for kind in VALUES]
        own += [show_number(row[f"{role}_normalised_drift"]) for role in roles]
        cells.append(own)
    return columns, cells
