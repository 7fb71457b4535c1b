"""Documents as work_engine tasks: the worker tokenises and captures, the driver names, writes and publishes the shards."""

from argparse import Namespace
from dataclasses import asdict

from rolecircuits.capture import instrument
from rolecircuits.documents import shards
from rolecircuits.documents.texts import Document
from rolecircuits.documents.tokens import TokenizedDocument, tokenize_document
from rolecircuits.engines.work import Item, content_hash, model_key, work_arguments
from rolecircuits.inputs.errors import printable
from rolecircuits.inputs.specs import ModelSpec, model_identity


def ready_item(texts, args):
    """The item that makes a worker ready: model, tokens of all documents, choice and check of the capture."""
    plain = [asdict(document) for document in texts]
    return Item(
        "documents",
        "rolecircuits.documents.tasks:ready_task",
        {"args": work_arguments(args), "documents": plain},
    )


def batch_items(batches, plain, args, method, batch_tokens):
    """One item a batch of positions; it carries its documents' tokens (`plain` as ready_task gives them)."""
    payload = {"args": work_arguments(args), "method": method, "batch_tokens": batch_tokens}
    parts = [[plain[i] for i in batch] for batch in batches]
    labels = [
        f"documents {printable(part[0]['prompt']['id'])} and {len(part) - 1} more" for part in parts
    ]
    return [
        Item(label, "rolecircuits.documents.tasks:batch_task", payload | {"documents": part})
        for label, part in zip(labels, parts, strict=True)
    ]


def ready_task(held, payload):
    """{"identity", "facts", "documents", "method", "how", "why", "determinism"}; see `ready_item`."""
    from deterministic import set_determinism
    from rolecircuits.capture.attention import choose_capture

    args = Namespace(**payload["args"])
    texts = [
        Document(d["id"], d["category"], tuple(map(tuple, d["turns"])))
        for d in payload["documents"]
    ]

    def tokenize(tokenizer):
        return [tokenize_document(document, tokenizer, args.bos) for document in texts]

    def load():
        return instrument.load_model(ModelSpec.of(args), args.seed, tokenize)

    loaded = held.model(model_key(args), load)

    def make():
        tokenized = tokenize(loaded.tokenizer)
        prompts = [document.prompt for document in tokenized]
        method, _, why = choose_capture(
            args.capture, "none", prompts, loaded.facts, args.batch_size
        )
        how = {"method": method} | (
            instrument.check_streaming(loaded) if method == "streaming" else {}
        )
        answer = {
            "identity": model_identity(loaded.facts),
            "facts": loaded.facts,
            "method": method,
            "how": how,
            "why": why,
        }
        plain = [asdict(document) for document in tokenized]
        return answer | {"documents": plain, "determinism": set_determinism(args.seed)}

    return held.state(content_hash(payload), make)


def batch_task(held, payload):
    """(arrays of each document or None, [(id, reason)] of those that failed), as documents.capture_documents gives them."""
    from deterministic import set_determinism
    from rolecircuits.capture.tokens import TokenizedPrompt

    args = Namespace(**payload["args"])
    loaded = held.model(
        model_key(args), lambda: instrument.load_model(ModelSpec.of(args), args.seed)
    )
    some = [from_plain(document, TokenizedPrompt) for document in payload["documents"]]
    set_determinism(args.seed)
    return shards.capture_documents(
        loaded, some, payload["method"], args.batch_size, payload["batch_tokens"]
    )


def from_plain(plain, kind=Namespace):
    """A TokenizedDocument of what ready_task gave; the driver, which imports no torch for it, needs no TokenizedPrompt."""
    return TokenizedDocument(kind(**plain["prompt"]), plain["roles"], plain["spans"])
