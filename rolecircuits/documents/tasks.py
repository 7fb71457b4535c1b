"""Documents on an engine: workers tokenise and capture; the driver keeps a shard of each document.

The same command continues with the documents that have no shard yet.
"""

import time
from dataclasses import asdict, dataclass
from functools import partial

from deterministic import set_determinism
from rolecircuits.capture import instrument
from rolecircuits.capture.attention import choose_capture
from rolecircuits.capture.batches import BATCH_TOKENS, make_batches
from rolecircuits.capture.masks import note_windows
from rolecircuits.documents import shards
from rolecircuits.documents.shapes import Document
from rolecircuits.documents.tokens import Documents, TokenizedDocument
from rolecircuits.engines.work import Item, content_hash
from rolecircuits.inputs.errors import printable
from rolecircuits.inputs.parser import say_notes
from rolecircuits.inputs.specs import Setting, model_identity
from rolecircuits.models.rotary import batch_side
from rolecircuits.runs.finished import read_piece, write_piece
from rolecircuits.runs.progress import progress


@dataclass
class CapturedDocuments:
    """All documents of a file, in its order.

    facts      of the model                   how     the capture, as the config records it
    documents  TokenizedDocuments             arrays  of their shards, None where one failed
    failed     [(id, reason)], those that cannot be fed, which are no documents, among them
    feeding    what capture.feeding says      seconds of capture, loading not counted
    """

    facts: dict
    how: dict
    feeding: dict
    determinism: dict
    documents: list
    arrays: list
    failed: list
    seconds: float

    def complete(self):
        """(documents, arrays) of those that were captured."""
        kept = [i for i, arrays in enumerate(self.arrays) if arrays is not None]
        return [self.documents[i] for i in kept], [self.arrays[i] for i in kept]


def run_documents(engine, texts: list[Document], setting: Setting, capture, folder):
    """CapturedDocuments of the Documents `texts`: shards in `folder` are read, the others are made.

    setting  a Setting; conversations take its chat template, texts only its bos
    capture  auto, patterns or streaming
    """
    payload = {"setting": asdict(setting), "capture": capture}
    plain = {"documents": [asdict(text) for text in texts]}
    ready = engine.prepare(Item("documents", ready_task, payload | plain))
    facts, documents, method = ready["facts"], ready["documents"], ready["how"]["method"]
    say_notes(ready["feeding"]["notes"])
    if ready["failed"]:
        n = len(ready["failed"])
        print(f"note: {n} of {len(texts)} documents cannot be fed; the rest goes on")
    if ready["why"]:
        print(ready["why"])
    paths = [folder / shards.shard_name(facts, document, method) for document in documents]
    arrays = [
        read_piece(path, shards.shard_shapes(facts, document))
        for path, document in zip(paths, documents, strict=True)
    ]
    todo = [i for i, shard in enumerate(arrays) if shard is None]
    if len(todo) < len(documents):
        n = len(documents) - len(todo)
        print(f"{n} of {len(documents)} documents were finished before, in {printable(folder)}")
    lengths = [documents[i].n_tokens for i in todo]
    batches = make_batches(lengths, setting.batch_size, BATCH_TOKENS, batch_side(facts))
    items = [batch_item([documents[todo[i]] for i in batch], payload, method) for batch in batches]
    started = time.perf_counter()
    place = {document.prompt.id: i for i, document in enumerate(documents)}
    failed = list(ready["failed"])
    title = f"{printable(setting.model.model_id)} documents"
    with progress(sum(lengths), title, "token", unit_scale=True) as bar:
        for item, (captured, lost) in engine.run(items):
            failed += lost
            for name, shard in captured.items():
                arrays[place[name]] = shard
                write_piece(paths[place[name]], shard)
            bar.update(sum(len(d["prompt"]["token_ids"]) for d in item.payload["documents"]))
    how, seconds = ready["how"] | {"engine": engine.facts()}, time.perf_counter() - started
    record = (facts, how, ready["feeding"], ready["determinism"])
    return CapturedDocuments(*record, documents, arrays, failed, seconds)


def batch_item(documents, payload, method):
    """The Item that captures a batch of TokenizedDocuments."""
    label = f"documents {printable(documents[0].prompt.id)} and {len(documents) - 1} more"
    plain = [asdict(document) for document in documents]
    return Item(label, batch_task, payload | {"capture": method, "documents": plain})


def ready_task(state, payload):
    """{"identity", "facts", "documents", "failed", "feeding", "how", "why", "determinism"}, kept by
    the worker.

    documents  TokenizedDocuments    failed  [(id, reason)] of those that cannot be fed
    how  the capture that was chosen and its check    why  or None
    """
    setting = Setting.from_plain(payload["setting"])
    texts = [
        Document(plain["id"], plain["category"], tuple(map(tuple, plain["turns"])))
        for plain in payload["documents"]
    ]

    def tokenize(tokenizer):
        return Documents(texts, tokenizer, setting.form)

    loaded = model_of(state, setting, check=tokenize)

    def make():
        documents = tokenize(loaded.tokenizer)
        prompts = [document.prompt for document in documents.fed]
        method, why = choose_capture(
            payload["capture"], "none", prompts, loaded.facts, setting.batch_size
        )
        note_windows(loaded, max(document.n_tokens for document in documents.fed))
        checked = instrument.check_streaming(loaded) if method == "streaming" else {}
        return {
            "identity": model_identity(loaded.facts),
            "facts": loaded.facts,
            "documents": documents.fed,
            "failed": documents.failed,
            "feeding": documents.feeding,
            "how": {"method": method} | checked,
            "why": why,
            "determinism": set_determinism(setting.seed),
        }

    return state.state(content_hash(payload), make)


def batch_task(state, payload):
    """What `shards.capture_documents` gives for the documents of the payload."""
    setting = Setting.from_plain(payload["setting"])
    loaded = model_of(state, setting)
    documents = [TokenizedDocument.from_plain(plain) for plain in payload["documents"]]
    set_determinism(setting.seed)
    return shards.capture_documents(loaded, documents, payload["capture"], setting.batch_size)


def model_of(state, setting, check=None):
    """The worker's LoadedModel, loaded where it has another; `check` is that of `load_model`."""
    load = partial(instrument.load_model, setting.model, setting.seed, check)
    return state.model(setting.model, load)
