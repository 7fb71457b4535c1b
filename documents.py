"""Stream long texts and conversations through a model: entropies of each document and of each of its turns.

    {"id": "d1", "category": "neutral", "text": "..."}                                  a text, fed raw (BOS as --bos says)
    {"id": "c1", "messages": [{"role": "user", "content": "..."}, ...]}                 a conversation, in the chat template

One JSON object a line; `category` (one of the four) is optional, and RFC and RSI over documents need it. The rows of a turn are
those of its own content; the rows of a document are those of all of its turns. Values are means over rows, then over heads:

    normalised  H / ln(visible keys)     sinkfree  the same without key 0     sink_mass  attention on key 0

Every finished document is a shard, <output_dir>/document_shards/<hash>.npz, named by what determines its numbers: model,
dtype, capture, tokens and turns. The same command continues where it was stopped; a changed model or text has another name.

    python activation_analysis.py --documents FILE.jsonl --capture streaming
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rolecircuits.inputs.categories import CATEGORIES, REQUIRED
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.files import parse_strict_json
from rolecircuits.runs.npz import read_npz, write_npz
from rolecircuits.stats import entropy, moments
from rolecircuits.stats.indices import index_values

SHARDS = "document_shards"
SHARD_VERSION = 1
VALUES = ("normalised", "sinkfree", "sink_mass")
FIELDS = ("id", "category", "text", "messages")


@dataclass(frozen=True)
class Document:
    """One line of the file: `turns` is ((role, content), ...); a text is one turn with the role "text"."""

    id: str
    category: str
    turns: tuple

    @property
    def is_chat(self):
        return self.turns[0][0] != "text"


@dataclass(frozen=True)
class TokenizedDocument:
    """A document as the model sees it: `prompt` is what capture_attention takes, `spans` [(start, stop)] one a turn."""

    prompt: object
    roles: tuple
    spans: tuple

    @property
    def n_tokens(self):
        return len(self.prompt.token_ids)


def read_documents(path):
    """Documents of a JSONL file, checked; a UserError names file, line and field."""
    path, flag = Path(path), "--documents"
    try:
        if not path.is_file():
            why = "is a folder" if path.is_dir() else "is not a regular file" if path.exists() else "no such file"
            raise UserError(f"{flag} {path}: {why}")
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except OSError as error:
        raise UserError(f"{flag} {str(path)[:200]}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{flag} {path}: not UTF-8 at byte {error.start}") from error
    documents, seen = [], {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{flag} {path}: line {number}"
        document = _read_document(parse_strict_json(line, where, one_line=True), where)
        if document.id in seen:
            raise UserError(f"{where}: id {printable(document.id)!r} is that of line {seen[document.id]}")
        seen[document.id] = number
        documents.append(document)
    if not documents:
        raise UserError(f"{flag} {path}: holds no documents")
    return documents


def _read_document(value, where):
    if not isinstance(value, dict):
        raise UserError(f"{where}: is a {type(value).__name__}; it must be an object with id and text or messages")
    for name in value:
        if name not in FIELDS:
            raise UserError(f"{where}: unknown field {printable(name)!r}; allowed are {', '.join(FIELDS)}")
    _check_text(value.get("id"), f"{where}: id")
    category = value.get("category", "")
    if "category" in value and category not in CATEGORIES:
        raise UserError(f"{where}: category {printable(category)!r}; allowed are {', '.join(CATEGORIES)}, or none")
    if ("text" in value) == ("messages" in value):
        raise UserError(f"{where}: must have either text or messages")
    if "text" in value:
        _check_text(value["text"], f"{where}: text")
        return Document(value["id"], category, (("text", value["text"]),))
    messages = value["messages"]
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{where}: messages must be a list that is not empty")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise UserError(f"{where}: messages[{i}] must be an object with role and content and nothing else")
        for name in ("role", "content"):
            _check_text(message[name], f"{where}: messages[{i}].{name}")
        if message["role"] == "text":
            raise UserError(f"{where}: messages[{i}].role: 'text' is no role")
    return Document(value["id"], category, tuple((m["role"], m["content"]) for m in messages))


def _check_text(text, where):
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{where} must be a text that is not empty")
    if any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        raise UserError(f"{where} holds half a surrogate pair, which is not a character")


def tokenize_document(document, tokenizer, bos="auto"):
    """A TokenizedDocument; longer than the context, or changed by the chat template, is refused."""
    from rolecircuits.capture.tokens import TokenizedPrompt, check_special_tokens, tokenize_prompts
    from rolecircuits.inputs.categories import Prompt

    texts = [Prompt(document.id, document.category, -1, content) for _, content in document.turns]
    if not document.is_chat:
        prompt = tokenize_prompts(texts, tokenizer, bos=bos)[0]
        return TokenizedDocument(prompt, ("text",), (prompt.span,))
    hf = tokenizer.hf
    if not hf.chat_template:
        raise UserError(f"document {printable(document.id)} has messages, and this model has no chat template")
    check_special_tokens(texts, hf)
    rendered, places = render_turns(document, hf)
    encoded = hf(rendered, add_special_tokens=False, return_offsets_mapping=True)
    tokenizer.check_ids(encoded.input_ids, f"document {printable(document.id)}")
    if len(encoded.input_ids) > tokenizer.context:
        raise UserError(
            f"document {printable(document.id)} has {len(encoded.input_ids)} tokens, the model's context holds "
            f"{tokenizer.context}; it is not truncated"
        )
    left, right = np.array(encoded.offset_mapping).T
    spans = []
    for start, stop in places:
        inside = np.flatnonzero((right > start) & (left < stop))
        spans.append((int(inside[0]), int(inside[-1]) + 1))
    ids = list(encoded.input_ids)
    whole = (spans[0][0], spans[-1][1])
    strings = hf.convert_ids_to_tokens(ids)
    text = "\n".join(content for _, content in document.turns)
    prompt = TokenizedPrompt(document.id, document.category, -1, text, rendered, ids, strings, whole)
    return TokenizedDocument(prompt, tuple(role for role, _ in document.turns), tuple(spans))


def render_turns(document, hf):
    """(rendered conversation, [(start, stop) of each turn's content in characters]).

    The template is rendered a second time with markers in the place of the contents; what stands between the markers must
    stand between the contents, or the template changes the text and is refused.
    """
    markers = [f"\u2603\u2603{i}\u2603\u2603" for i in range(len(document.turns))]
    rendered = _render(hf, document, [content for _, content in document.turns])
    pattern = _render(hf, document, markers)
    position, cursor, places = 0, 0, []
    for marker, (_, content) in zip(markers, document.turns, strict=True):
        found = pattern.find(marker, cursor)
        between = pattern[cursor:found]
        start = position + len(between)
        text = content if rendered.startswith(content, start) else content.strip()
        if found < 0 or rendered[position:start] != between or not rendered.startswith(text, start):
            raise UserError(f"document {printable(document.id)}: the chat template changes turn {len(places)}")
        position, cursor = start + len(text), found + len(marker)
        places.append((start, position))
    if rendered[position:] != pattern[cursor:]:
        raise UserError(f"document {printable(document.id)}: the chat template changes the end of the conversation")
    return rendered, places


def _render(hf, document, contents):
    from rolecircuits.capture.tokens import TEMPLATE_ERRORS

    messages = [{"role": role, "content": text} for (role, _), text in zip(document.turns, contents, strict=True)]
    try:
        return hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
    except TEMPLATE_ERRORS as error:
        raise UserError(
            f"document {printable(document.id)}: the chat template refuses it: {printable(error)}"
        ) from error


def shard_name(facts, document, method):
    """The hash that names a document's shard: everything that determines its numbers."""
    identity = {
        "version": SHARD_VERSION,
        "model": [facts[key] for key in ("id", "revision", "weights_sha256", "tokenizer_sha256", "dtype")],
        "capture": method,
        "token_ids": document.prompt.token_ids,
        "roles": document.roles,
        "spans": document.spans,
        "id": document.prompt.id,
    }
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def capture_documents(loaded, documents, method, batch_size=64, batch_tokens=None):
    """([arrays of each document, None where it failed], [(id, reason)]); the arrays are those of `document_arrays`."""
    from rolecircuits.capture.attention import capture_attention

    captured = capture_attention(
        loaded,
        [document.prompt for document in documents],
        batch_size,
        streaming=method == "streaming",
        batch_tokens=batch_tokens,
    )
    rows = {prompt_id: i for i, prompt_id in enumerate(captured.arrays["prompt_id"].tolist())}
    results = [
        document_arrays(captured.arrays, rows[d.prompt.id], d) if d.prompt.id in rows else None for d in documents
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
    return [f"{part}_{name}" for part in ("turn", "whole", "row") for name in VALUES] + ["spans", "n_tokens"]


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
    if arrays["turn_normalised"].shape != shape or arrays["row_sink_mass"].shape[-1] != document.n_tokens:
        print(f"note: {printable(path)}: does not fit its document; done again")
        return None
    return arrays


def stream_documents(facts, documents, folder, method, capture_batches, batch_size=64, batch_tokens=None, title=None):
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
    with tqdm(total=total, desc=title, unit="token", unit_scale=True, disable=title is None, leave=False) as bar:
        for batch, (done, lost) in capture_batches([[todo[j] for j in each] for each in batches]):
            failed += lost
            for i, arrays in zip(batch, done, strict=True):
                results[i] = arrays
                if arrays is not None:
                    write_npz(paths[i], arrays)
            bar.update(sum(documents[i].n_tokens for i in batch))
    return results, failed


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
    return float(moments.mean_rows(np.asarray(values, np.float64).reshape(-1), np.True_))


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
        indices = index_values(arrays[f"whole_{kind}"].astype(np.float64).mean(axis=-1), arrays["category"])
        for layer in range(arrays[f"whole_{kind}"].shape[1]):
            rows.append({"layer": layer, "kind": kind} | {name: values[layer] for name, values in indices.items()})
    return rows
