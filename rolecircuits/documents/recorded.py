"""Conversations whose rows a RoleMonitor recorded, as the files of a documents run.

shard = recorded_shard(monitor.texts[-1], document)
save_recorded(folder, recording, "monitor_chat.py", args, draw=True)
"""

from dataclasses import dataclass, field

from rolecircuits.capture.attention import TURN_MASS
from rolecircuits.capture.chat_template import Template
from rolecircuits.capture.feeding import feeding_of
from rolecircuits.documents.shards import shard_arrays
from rolecircuits.documents.tables import save_documents
from rolecircuits.inputs.arguments import CONVERSATION
from rolecircuits.inputs.errors import RunFailed
from rolecircuits.inputs.files import sha256_of
from rolecircuits.inputs.specs import PromptFormat
from rolecircuits.models.load import LoadedModel
from rolecircuits.monitor import Recorded
from rolecircuits.runs.files import write_prompts
from rolecircuits.runs.record import describe_run, portable
from rolecircuits.stats.masses import turn_means


@dataclass
class Recording:
    """What was recorded with a model: TokenizedDocuments, the arrays of their shards, and what was
    said in each, [[(role, text)]].

    failed  [(id, reason)] of those that could not be fed    determinism, timings  for the config
    """

    loaded: LoadedModel
    form: PromptFormat
    template: Template
    documents: list = field(default_factory=list)
    shards: list = field(default_factory=list)
    said: list = field(default_factory=list)
    failed: list = field(default_factory=list)
    determinism: dict = field(default_factory=dict)
    timings: dict = field(default_factory=dict)


def recorded_shard(text: Recorded, document):
    """The arrays of a document's shard, from what was recorded of it."""
    if text.token_ids != document.prompt.token_ids:
        raise RunFailed("the rows that were recorded are not those of the conversation")
    arrays = text.arrays()
    rows = ("entropy", "entropy_sinkfree", "sink_mass")
    captured = {name: arrays[name][None] for name in rows}
    captured["visible_keys"] = arrays["visible_keys"]
    captured[TURN_MASS] = turn_means(arrays["segment_mass"], document.spans)[None]
    return shard_arrays(captured, 0, document)


def save_recorded(folder, recording: Recording, script, args, draw=True):
    """Write a documents run, and what was said; returns what documents.tables.print_run prints.

    args  of the script, with `seed`; args.documents is the name of the file of what was said
    """
    file = folder / CONVERSATION
    rows = [
        {"id": document.prompt.id, "category": document.prompt.category or None, "messages": turns}
        for document, said in zip(recording.documents, recording.said, strict=True)
        for turns in [[{"role": role, "content": text} for role, text in said]]
    ]
    write_prompts(file, [{k: v for k, v in row.items() if v is not None} for row in rows])
    prompts = [document.prompt for document in recording.documents]
    loaded, form = recording.loaded, recording.form
    feeding = feeding_of(prompts, loaded.tokenizer, form, recording.template)
    known = {"sha256": sha256_of(file), "format": "chat", "n": len(prompts), "bos": form.bos}
    failed = [{"id": name, "reason": portable(reason)} for name, reason in recording.failed]
    fed = {"documents": known | feeding["how"] | {"failed": failed}, "model": feeding["model"]}
    how = (loaded.facts, fed, recording.determinism, recording.timings)
    config = describe_run(script, args, *how)
    config["capture"] = {"method": "monitor"}
    found = recording.documents, recording.shards
    return save_documents(folder, *found, config, loaded.facts, draw)
