"""The four categories of prompts, what a prompt is, and the hash of a prompt set."""

import hashlib
import json
from dataclasses import dataclass

CATEGORIES = ("self_referent", "confounder", "neutral", "third_person")
REQUIRED = ("self_referent", "neutral")
PAIRED = ("confounder", "third_person")


@dataclass(frozen=True)
class Prompt:
    """One prompt: `id` is unique in its set, `pair_id` joins confounder[i] with third_person[i].

    pair_id is -1 in the other categories, and where both do not pair.
    """

    id: str
    category: str
    pair_id: int
    text: str


def prompt_set_sha256(prompts):
    """SHA-256 of the prompt set: ids, categories, pairs and texts, as canonical JSON."""
    rows = [[p.id, p.category, p.pair_id, p.text] for p in prompts]
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()
