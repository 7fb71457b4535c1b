"""A scorer for Inspect (inspect_ai): what each turn of a task's conversations attended to.

    from rolecircuits.documents.inspect_scorer import role_scorer

    Task(dataset=..., solver=..., scorer=[match(), role_scorer()])
    inspect eval task.py --model hf/HuggingFaceTB/SmolLM2-135M-Instruct

Of every sample the conversation is fed once more to the model that answered, closed, in its chat
template. The score is the last answer's columns of turns.csv (entropies, the sink's mass, masses on
the system's, the user's and the model's own text beside their values under uniform attention); its
metadata holds all turns. When a task has ended, <output_dir>/inspect_<time>/ is what
activation_analysis.py --documents writes of the same conversations, linked as latest_inspect.

Only models that are here: Inspect's provider hf.
"""

import math
import threading
from dataclasses import dataclass
from pathlib import Path

import torch
from inspect_ai.hooks import Hooks, SampleEnd, TaskEnd, hooks
from inspect_ai.model import get_model
from inspect_ai.scorer import Score, mean, scorer, stderr
from transformers import PreTrainedModel

from rolecircuits.capture.chat_template import Template
from rolecircuits.capture.tokens import NO_SLOT, bos_to_prepend
from rolecircuits.documents.recorded import Recording, recorded_shard, save_recorded
from rolecircuits.documents.shapes import Document, Fields, RowReader
from rolecircuits.documents.tables import document_rows, stacked_arrays
from rolecircuits.documents.tokens import tokenize_conversation
from rolecircuits.inputs.arguments import (
    CONVERSATION,
    DEFAULT_RESULTS,
    DEFAULT_SEED,
    LATEST_INSPECT,
    check_output_dir,
)
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.specs import PromptFormat
from rolecircuits.models.load import wrap_model
from rolecircuits.monitor import RoleMonitor
from rolecircuits.runs.publish import create_run
from rolecircuits.stats.document_stats import SHARES, VALUES

COLUMNS = (*VALUES, *(name for share in SHARES for name in (share, f"{share}_null")))
PLACE = ("id", "category")  # of a row of turns.csv: the same in all turns of a sample
SCORED = {}  # {a sample's uuid: Scored}, until the sample has ended
ENDED = {}  # {a task's eval_id: [Scored]}, until the task has ended


@dataclass(frozen=True)
class InspectArguments:
    """What experiment_config.json says of a task in the place of a script's flags."""

    model_id: str
    task: str
    output_dir: str
    documents: str = CONVERSATION
    prompt_format: str = "chat"
    seed: int = DEFAULT_SEED


@dataclass(frozen=True)
class Scored:
    """What was recorded of one sample; document is None, and reason says why, where it was not."""

    id: str
    models: "Measured"
    output_dir: Path | None
    document: object = None
    shard: dict | None = None
    said: tuple = ()
    reason: str = ""


class OwnThreadMonitor(RoleMonitor):
    """A RoleMonitor of the passes of one thread: Inspect generates in another, for other samples,
    with the same model.
    """

    def __enter__(self):
        self._thread = threading.get_ident()
        return super().__enter__()

    def _begin(self, *given):
        return super()._begin(*given) if self._is_own() else None

    def _attend(self, *given):
        return super()._attend(*given) if self._is_own() else None

    def _finish(self, *given):
        return super()._finish(*given) if self._is_own() else None

    def _is_own(self):
        return threading.get_ident() == self._thread


class Measured:
    """A model of Inspect's provider hf, ready to be measured."""

    known = {}  # {id of the provider's object: Measured}

    def __init__(self, api, name):
        self.api, text = api, getattr(api, "chat_template", None)
        if getattr(api, "use_chat_template", None) is False:
            raise UserError("role_scorer: use_chat_template is off, so there are no turns to tell")
        source = getattr(api.model.config, "_name_or_path", "") or name
        self.loaded = wrap_model(api.model, api.tokenizer, source)
        named = {"chat_template": "inspect.jinja", "template_text": text} if text else {}
        self.form = PromptFormat("chat", **named)
        self.template = Template(self.loaded.tokenizer, self.form)
        self.bos = bos_to_prepend(self.loaded.tokenizer, self.form)

    @classmethod
    def of(cls, model):
        """The Measured of a model of Inspect; refused where it is not here."""
        api = model.api
        if not isinstance(getattr(api, "model", None), PreTrainedModel):
            raise UserError(
                f"role_scorer reads the attention of a model that is here: --model hf/..., not "
                f"{printable(model)}, whose attention nobody sees"
            )
        if cls.known.get(id(api)) is None or cls.known[id(api)].api is not api:
            cls.known[id(api)] = cls(api, model.name)
        return cls.known[id(api)]

    def record(self, document: Document):
        """(TokenizedDocument, arrays of its shard) of a conversation, fed once."""
        tokenizer = self.loaded.tokenizer
        document = tokenize_conversation(document, tokenizer, self.template, self.bos)
        ids, model = document.prompt.token_ids, self.loaded.model
        monitor = OwnThreadMonitor(model, tokenizer)
        monitor.expect(ids, document.prompt.segments, NO_SLOT)
        with monitor, torch.inference_mode():
            given = torch.tensor([ids], device=model.device)
            model(input_ids=given, use_cache=False, logits_to_keep=1)
        return document, recorded_shard(monitor.texts[-1], document)


@scorer(metrics={"*": [mean(), stderr()]})
def role_scorer(output_dir=DEFAULT_RESULTS, category_field=None):
    """The scorer, as the module says.

    output_dir      where a documents run is made of the task, None for none
    category_field  of a sample's metadata, that holds its category; None: samples have none
    """
    if output_dir is not None:
        output_dir = check_output_dir(output_dir, link=LATEST_INSPECT).absolute()

    async def score(state, target):
        measured = Measured.of(get_model())
        name = str(state.sample_id) + (f".{state.epoch}" if state.epoch > 1 else "")
        category = state.metadata.get(category_field) if category_field else None
        try:
            own = read_conversation(name, state.messages, category)
            document, shard = measured.record(own)
        except UserError as error:
            SCORED[state.uuid] = Scored(name, measured, output_dir, reason=str(error))
            nothing = dict.fromkeys(COLUMNS, math.nan)
            return Score(value=nothing, explanation=str(error), reason="scoring_failed")
        SCORED[state.uuid] = Scored(name, measured, output_dir, document, shard, own.turns)
        _, turns = document_rows([document], stacked_arrays([document], [shard]))
        last = max(row["turn"] for row in turns if row["role"] == "assistant")
        value = {column: turns[last][column] for column in COLUMNS}
        plain = [{k: _plain(v) for k, v in row.items() if k not in PLACE} for row in turns]
        return Score(value=value, answer=own.turns[last][1], metadata={"turns": plain})

    return score


def read_conversation(name, messages, category=None):
    """The Document of a sample's messages, read as --documents reads them; the texts of user turns
    that follow each other are one, as Inspect gives them to the model.
    """
    rows = []
    for message in messages:
        content = message.content
        if not isinstance(content, str):
            content = [part.model_dump() for part in content]
        row = {"role": message.role, "content": content}
        calls = getattr(message, "tool_calls", None) if message.role == "assistant" else None
        if calls:
            row["tool_calls"] = [{"name": c.function, "arguments": c.arguments} for c in calls]
        both = (rows[-1]["content"], content) if rows and rows[-1]["role"] == row["role"] else ()
        if message.role == "user" and both and all(isinstance(text, str) for text in both):
            rows[-1]["content"] = "\n".join(both)
        else:
            rows.append(row)
    document = RowReader(Fields(), "chat").read(
        {"id": name, "messages": rows} | ({"category": category} if category else {}), name
    )
    if not any(role == "assistant" for role, _ in document.turns):
        raise UserError("the conversation has no answer")
    return document


def _plain(value):
    """A value as JSON has it: what is undefined is null."""
    return None if isinstance(value, float) and math.isnan(value) else value


@hooks(name="role_scorer", description="writes the documents run of a task that has ended")
class PublishRuns(Hooks):
    """Inspect calls these; an error in them becomes a warning of Inspect's."""

    async def on_sample_end(self, data: SampleEnd):
        scored = SCORED.pop(data.sample_id, None)
        if scored is not None:
            ENDED.setdefault(data.eval_id, []).append(scored)

    async def on_task_end(self, data: TaskEnd):
        Measured.known.clear()  # else models would stay in memory for good
        scored = ENDED.pop(data.eval_id, [])
        if scored and scored[0].output_dir is not None and any(s.document for s in scored):
            publish(scored, data.log.eval.task)


def publish(scored, task):
    """Publish the documents run of a task's [Scored]; returns its folder."""
    scored = sorted(scored, key=lambda each: each.id)
    done, measured = [each for each in scored if each.document], scored[0].models
    recording = Recording(
        *(measured.loaded, measured.form, measured.template),
        [each.document for each in done],
        [each.shard for each in done],
        [each.said for each in done],
        [(each.id, each.reason) for each in scored if not each.document],
    )
    args = InspectArguments(measured.loaded.facts["id"], task, str(scored[0].output_dir))
    with create_run(args.output_dir, LATEST_INSPECT, "inspect") as new:
        save_recorded(new.path, recording, f"inspect: {task}", args)
    print(f"role_scorer: {len(done)} of {len(scored)} samples -> {printable(new.final)}")
    return new.final
