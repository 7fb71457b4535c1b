"""A conversation that grows: a model answers the user's lines, and the rows of all its tokens are
recorded on the way, so that it is written as a documents run without being fed again.

    chat = Chat(loaded, form, Answering())
    chat.say("Who are you?")
    chat.turns[-1]      # ("assistant", ...)
    chat.save(folder, args, draw=True)

The cache holds what was fed. Every turn the conversation is rendered and tokenised anew; what the
cache has in common with it stays, the rest is fed again. After an answer the closed conversation is
fed to its end, so that its rows are those of a documents run over the same turns.
"""

import os
import time
from dataclasses import dataclass

import torch
from transformers import DynamicCache, GenerationConfig

from deterministic import set_determinism
from rolecircuits.capture.chat_template import Template
from rolecircuits.capture.conversations import tokenize_turns
from rolecircuits.capture.generation import stop_tokens
from rolecircuits.capture.instrument import load_model
from rolecircuits.capture.model_pass import EAGER, set_attention
from rolecircuits.capture.tokens import CODE, NO_SLOT, bos_to_prepend
from rolecircuits.documents.recorded import Recording, recorded_shard, save_recorded
from rolecircuits.documents.shapes import Document
from rolecircuits.documents.tables import print_run, stacked_arrays
from rolecircuits.documents.tokens import tokenize_conversation
from rolecircuits.inputs.arguments import DEFAULT_SEED, check_text
from rolecircuits.inputs.errors import UserError
from rolecircuits.monitor import RoleMonitor
from rolecircuits.stats.document_stats import turn_columns

__all__ = ["Answering", "Chat", "open_chat", "print_run"]
NAME = "chat"  # the id of the one document
CLOSING = 8  # tokens that a template may write behind an answer


@dataclass(frozen=True)
class Answering:
    """How answers are made: at most so many tokens; temperature None is greedy."""

    max_tokens: int = 200
    temperature: float | None = None
    seed: int = DEFAULT_SEED


def open_chat(spec, form, answering):
    """A Chat with the model of a ModelSpec, loaded and checked."""
    return Chat(load_model(spec, answering.seed), form, answering)


class Chat:
    """The conversation so far.

    turns     [(role, text)], the system text first where there is one
    document  the TokenizedDocument of the closed conversation, None before the first answer
    shard     its arrays, as documents.shards has them
    """

    def __init__(self, loaded, form, answering=Answering()):  # noqa: B008  (it is frozen)
        self.loaded, self.form, self.how = loaded, form, answering
        self.template = Template(loaded.tokenizer, form)
        self.bos = bos_to_prepend(loaded.tokenizer, form)
        self.turns = [] if form.system_prompt is None else [("system", form.system_prompt)]
        self.document, self.shard, self.seconds = None, None, 0.0
        self.monitor, self.cache, self.fed = RoleMonitor(loaded.model, loaded.tokenizer), None, []
        self.determinism = set_determinism(answering.seed)
        set_attention(loaded.model, EAGER)

    def say(self, text):
        """Answer a line of the user. A UserError leaves the conversation as it was."""
        started = time.perf_counter()
        check_text(text, "the line")
        turns = [*self.turns, ("user", text)]
        fed = self._tokenize(turns, header=True)
        facts, n = self.loaded.facts, len(fed.token_ids)
        limits = [facts["context"], (facts["rotary"] or {}).get("original")]
        room = min([limit for limit in limits if limit], default=n + self.how.max_tokens + CLOSING)
        room = min(self.how.max_tokens, room - n - CLOSING)
        if room < 1:
            raise UserError(f"the conversation has {n} tokens, and no room is left for an answer")
        # The header is the template's once the answer stands behind it.
        codes = [CODE["template"] if c == CODE["assistant_header"] else c for c in fed.segments]
        answer = self._generate(fed.token_ids, codes, room)
        said = self.loaded.tokenizer.hf.decode(answer, skip_special_tokens=True)
        if not said.strip():
            raise UserError("the model's answer is empty")
        turns.append(("assistant", said))
        document = Document(NAME, "", tuple(turns))
        document = tokenize_conversation(document, self.loaded.tokenizer, self.template, self.bos)
        self._feed(document)
        self.turns, self.document = turns, document
        self.shard = recorded_shard(self.monitor.texts[-1], document)
        self.seconds += time.perf_counter() - started

    def _tokenize(self, turns, header):
        where = "the conversation"
        return tokenize_turns(turns, self.loaded.tokenizer, self.template, where, self.bos, header)

    def _keep_common(self, ids, segments):
        """Crop the cache to what it has in common with these tokens, of which one stays new."""
        self.monitor.known.clear()
        self.monitor.expect(ids, segments, NO_SLOT)
        common = len(os.path.commonprefix([self.fed, ids[:-1]]))
        if self.cache is None or common == 0:
            self.cache, self.fed = DynamicCache(), []
            self.monitor.clear()
        elif common < len(self.fed):
            self.cache.crop(common - len(self.fed))
            self.fed = self.fed[:common]

    def _generate(self, ids, segments, max_tokens):
        """The ids of an answer."""
        self._keep_common(ids, segments)
        model, stop, drawn = self.loaded.model, sorted(stop_tokens(self.loaded)), {}
        if self.how.temperature is not None:
            drawn = {"temperature": self.how.temperature, "top_k": 0, "top_p": 1.0}
        config = GenerationConfig(
            max_new_tokens=max_tokens,
            do_sample=bool(drawn),
            eos_token_id=stop or None,
            pad_token_id=stop[0] if stop else 0,
            repetition_penalty=1.0,
            **drawn,
        )
        given = torch.tensor([ids], device=next(model.parameters()).device)
        with self.monitor, torch.inference_mode():
            out = model.generate(
                given,
                attention_mask=torch.ones_like(given),
                past_key_values=self.cache,
                generation_config=config,
            )
        whole = out[0].tolist()
        self.fed = whole[: self.cache.get_seq_length()]
        return whole[len(ids) :]

    def _feed(self, document):
        """Feed the closed conversation as far as its rows are not there yet."""
        ids, model = document.prompt.token_ids, self.loaded.model
        self._keep_common(ids, document.prompt.segments)
        rest = torch.tensor([ids[len(self.fed) :]], device=next(model.parameters()).device)
        with self.monitor, torch.inference_mode():
            model(input_ids=rest, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.fed = list(ids)

    def measures(self):
        """{column of turns.csv: value} of the last answer."""
        columns = turn_columns(stacked_arrays([self.document], [self.shard]))
        return {name: float(values[-1]) for name, values in columns.items()}

    def save(self, folder, args, draw):
        """Write a documents run of the conversation so far, and what was said; returns what
        documents.tables.print_run prints.

        args  of the script; args.documents is the name of the conversation's file
        """
        made = (self.loaded, self.form, self.template)
        said = ([self.document], [self.shard], [self.turns])
        timings = {"answers_s": self.seconds}
        recording = Recording(*made, *said, determinism=self.determinism, timings=timings)
        return save_recorded(folder, recording, "monitor_chat.py", args, draw)
