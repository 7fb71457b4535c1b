"""A documents run in a report: entropy and sink mass turn by turn, RFC and RSI by layer.

The run holds roles and the places of turns, not their texts: those are read from the file that was
fed, where it is still the same (its SHA-256 is in the run's config).
"""

import numpy as np

from rolecircuits.inputs.categories import REQUIRED
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.report.overview import category_name
from rolecircuits.report.packing import pack_numbers
from rolecircuits.report.section import Context, Section
from rolecircuits.runs.files import read_json
from rolecircuits.runs.npz import read_npz
from rolecircuits.stats.index_inference import infer_indices
from rolecircuits.stats.moments import defined_mean
from rolecircuits.stats.units import ALONE

SEE = (
    "Whether attention grows more diffuse, or the sink stronger, as a conversation goes on: each "
    "line is one conversation, a point is one turn."
)
KINDS = ("normalised", "sinkfree")
VALUES = (*KINDS, "sink_mass")
LABELS = ("document_id", "category", "n_tokens", "turn_document", "turn_role", "turn_span")
MAX_DOCUMENTS = 200  # whose turns the page holds
MAX_TURNS = 2000
MAX_HEADS = 1_500_000  # values of single heads that the page holds
MAX_LETTERS, MAX_TEXT = 2000, 600_000  # of a turn, and of all turns


def conversations_section(context: Context):
    """The Section, or None without a documents run."""
    folder = context.folders.documents
    if folder is None:
        return None
    config, arrays = read_json(folder / "experiment_config.json"), read_arrays(folder)
    texts = turn_texts(arrays, context.folders.texts or {})
    kept = documents_kept(arrays)
    n_all = len(arrays["document_id"])
    data = {
        "facts": facts_of(config),
        "documents": plain_documents(arrays, kept),
        "turns": plain_turns(arrays, kept, texts),
        "indices": plain_indices(arrays),
    }
    failed = (config.get("documents") or {}).get("failed") or []
    static = {
        "of": printable(config["model"]["id"]),
        "n": n_all,
        "n_turns": len(arrays["turn_document"]),
        "kept": len(kept),
        "failed": [{"id": printable(row["id"]), "reason": row["reason"]} for row in failed],
        "has_texts": bool(texts),
        "file": printable((config.get("arguments") or {}).get("documents") or "the file"),
        "rows": static_rows(arrays, kept),
        "has_indices": data["indices"] is not None,
    }
    return Section("conversations", "Conversations", SEE, static, data)


def facts_of(config):
    """The columns that every CSV begins with."""
    given = (config.get("arguments") or {}).get("documents") or ""
    name = str(given).replace("\\", "/").rsplit("/", 1)[-1]
    format_ = (config.get("documents") or {}).get("format") or "documents"
    facts = {"model": config["model"]["id"], "set": printable(name), "format": format_}
    return facts | {"run": ""}


def read_arrays(folder):
    """The arrays of documents.npz, their shapes checked against one another."""
    path = folder / "documents.npz"
    names = [*LABELS, *(f"{of}_{kind}" for of in ("whole", "turn") for kind in VALUES)]
    arrays = read_npz(path, names)
    n_documents, n_turns = len(arrays["document_id"]), len(arrays["turn_document"])
    sizes = arrays["whole_normalised"].shape[1:]
    shapes = {"category": (n_documents,), "n_tokens": (n_documents,), "turn_role": (n_turns,)}
    shapes |= {"turn_document": (n_turns,), "turn_span": (n_turns, 2)}
    for kind in VALUES:
        shapes |= {f"whole_{kind}": (n_documents, *sizes), f"turn_{kind}": (n_turns, *sizes)}
    for name, shape in shapes.items():
        if arrays[name].shape != shape or len(sizes) != 2:
            raise UserError(f"{path}: {name} is {arrays[name].shape}, expected {shape}")
    owner = arrays["turn_document"]
    if n_turns and not (owner.min() >= 0 and owner.max() < n_documents):
        raise UserError(f"{path}: turn_document names a document that is not there")
    return arrays


def documents_kept(arrays):
    """Positions of the documents whose turns the page holds: the first ones, as many as fit."""
    n_turns = np.bincount(arrays["turn_document"], minlength=len(arrays["document_id"]))
    fits = np.cumsum(n_turns) <= MAX_TURNS
    return np.flatnonzero(fits)[:MAX_DOCUMENTS]


def plain_documents(arrays, kept):
    """[{"id", "category", "n_tokens"}] of the documents that are kept."""
    columns = (arrays[name][kept].tolist() for name in ("document_id", "category", "n_tokens"))
    rows = zip(*columns, strict=True)
    return [{"id": name, "category": of, "n_tokens": n} for name, of, n in rows]


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
    n_values = len(VALUES) * arrays["turn_normalised"][rows].size
    if n_values <= MAX_HEADS:
        own = {kind: pack_numbers(arrays[f"turn_{kind}"][rows], 8) for kind in VALUES}
        turns["heads"] = own
    return turns


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


def plain_indices(arrays):
    """{kind: {index: {"estimate", "low", "high": [layer]}}} over documents; None without the
    categories.
    """
    if not all((arrays["category"] == name).any() for name in REQUIRED):
        return None
    found = {}
    for kind in KINDS:
        layers = arrays[f"whole_{kind}"].astype(np.float64).mean(axis=-1)
        alone = np.full(len(layers), ALONE)
        inferred = infer_indices(layers, arrays["category"], alone)
        found[kind] = {
            index: {"estimate": own.estimate, "low": own.low, "high": own.high}
            for index, own in inferred.items()
        }
    return found


def static_rows(arrays, kept):
    """A row a document for the table without JavaScript; last against first turn is drift."""
    rows = []
    for document in kept.tolist():
        turns = np.flatnonzero(arrays["turn_document"] == document)
        of = {"id": printable(arrays["document_id"][document])}
        of |= {"category": category_name(str(arrays["category"][document])) or "-"}
        of |= {"turns": len(turns), "tokens": int(arrays["n_tokens"][document])}
        for kind in VALUES:
            means = defined_mean(
                arrays[f"turn_{kind}"][turns].reshape(len(turns), -1).astype(float)
            )
            change = f"{means[-1] - means[0]:+.3f}" if len(turns) > 1 else "-"
            whole = float(defined_mean(arrays[f"whole_{kind}"][document].ravel().astype(float)))
            of |= {kind: f"{whole:.3f}", f"{kind}_change": change}
        rows.append(of)
    return rows[:60]
