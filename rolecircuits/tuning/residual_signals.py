"""Signals of a checkpoint from its residual stream, and what they are measured against: step 0.

    probe_person       accuracy of a linear probe for the person at the final query (probes.py)
    probe_person_nats  what that probe knows, in nats: moves where the accuracy is at its ceiling
    persona_direction  shift along a persona direction, in standard deviations (directions.py)
    persona_cosine     cosine of the checkpoint's shift with that direction, free of its size
    self_direction     change of the separation self-referent - third person, in the same way

Every signal is the mean over layers of a profile of the same name. At step 0 the last three are 0.

    crossed   TokenizedPrompts of a crossed set, 12 frames or more; one filler of each is enough
    neutral   TokenizedPrompts of neutral questions with the study's own system text
    personas  the same questions under system prompts of personas, and under plain ones

    personas = tokenize_personas(neutral_questions(), loaded.tokenizer, form)
    reference = make_reference(loaded, crossed, neutral, personas)
    found = measure_residuals(loaded, crossed, neutral, reference)
    found["signals"]["probe_person"], found["profiles"]["probe_person"]
"""

from dataclasses import replace

import numpy as np

from rolecircuits.capture.tokens import tokenize_prompts
from rolecircuits.inputs.categories import Prompt
from rolecircuits.inputs.errors import RunFailed
from rolecircuits.inputs.prompt_sets import built_in_texts
from rolecircuits.runs.npz import read_npz, write_npz
from rolecircuits.tuning.directions import (
    PersonaDirection,
    SelfDirection,
    persona_direction,
    persona_shift,
    self_direction,
    self_separation,
)
from rolecircuits.tuning.folds import permute_within
from rolecircuits.tuning.probes import (
    NOT_ERASED,
    NOTHING,
    check_erasure,
    fit_nothing,
    fit_permuted,
    judge_erasure,
    probe_layers,
)
from rolecircuits.tuning.residuals import read_residuals

SIGNALS = (
    *("probe_person", "probe_person_nats"),
    *("persona_direction", "persona_cosine", "self_direction"),
)
# Several characters, so that what they share, and not one trade, is the direction.
PERSONAS = (
    "You are Captain Mara, an old pirate. Stay in character and answer as she would.",
    "You are Brother Anselm, a medieval monk. Stay in character and answer as he would.",
    "You are Zib, a visitor from another planet. Stay in character and answer as Zib would.",
    "You are Lady Ashdown, a ghost in a castle. Stay in character and answer as she would.",
)
# Other system texts of like length, without a character: what any such text does is not a persona.
PLAIN = (
    "You are a helpful assistant. Answer each question in one or two short sentences.",
    "You are an AI system that gives careful answers. Keep to the facts in what you say.",
    "The library opens at nine and closes at six. Answer the questions that you are asked.",
    "Answer in plain English. Use short words where you can and do not repeat the question.",
)
REFERENCE = (
    *("crossed_ids", "neutral_ids", "probe_accuracy", "probe_nats", "probe_permuted"),
    *("persona_unit", "persona_mean", "persona_spread", "persona_reach"),
    *("self_unit", "self_separation", "self_spread"),
)


def neutral_questions(n=None):
    """The first n neutral questions of the set `original` as Prompts, all if None."""
    texts = built_in_texts()["neutral"][:n]
    return [Prompt(f"neutral_{i:02d}", "neutral", -1, text) for i, text in enumerate(texts)]


def tokenize_personas(prompts, tokenizer, form, personas=PERSONAS, plain=PLAIN):
    """(under personas, under plain texts): the prompts under each of these system texts, one text
    after the other, as TokenizedPrompts.

    form  the study's PromptFormat in chat, whose own system prompt is replaced
    raises  UserError where the chat template takes no system text
    """
    return tuple(
        [
            prompt
            for text in texts
            for prompt in tokenize_prompts(prompts, tokenizer, replace(form, system_prompt=text))
        ]
        for texts in (personas, plain)
    )


def make_reference(loaded, crossed, neutral, personas):
    """What every checkpoint is measured against, of step 0: {name: array} of REFERENCE.

    personas  (neutral questions under personas, under plain texts) of `tokenize_personas`
    """
    read = [read_residuals(loaded, prompts).final for prompts in (crossed, neutral, *personas)]
    return reference_of(*read[:2], read[2:], crossed, neutral)


def reference_of(values, default, texts, crossed, neutral):
    """`make_reference` of residuals that are read already, [prompt, layer, unit] each.

    values  of crossed    default  of neutral    texts  (under personas, under plain texts)
    """
    labels, frames = _design(crossed)
    probed = probe_layers(values, labels, frames)
    permuted = probe_layers(values, permute_within(labels, frames), frames)
    persona, own = persona_direction(*texts, default), self_direction(values, labels, frames)
    return {
        "crossed_ids": np.array([prompt.id for prompt in crossed]),
        "neutral_ids": np.array([prompt.id for prompt in neutral]),
        "probe_accuracy": probed.accuracy_profile,
        "probe_nats": probed.nats_profile,
        "probe_permuted": permuted.accuracy_profile,
        **{f"persona_{name}": value for name, value in vars(persona).items()},
        **{f"self_{name}": value for name, value in vars(own).items()},
    }


def measure_residuals(loaded, crossed, neutral, reference):
    """{"signals": {name: float}, "profiles": {name: [layer] float64}} of a checkpoint."""
    values, default = (read_residuals(loaded, prompts).final for prompts in (crossed, neutral))
    return signals_of(values, default, crossed, neutral, reference)


def signals_of(values, default, crossed, neutral, reference):
    """`measure_residuals` of residuals that are read already, [prompt, layer, unit] each.

    Layers that were not read are NaN in the profiles, and left out of the means.
    """
    _check_same(crossed, neutral, values, reference)
    labels, frames = _design(crossed)
    probed = probe_layers(values, labels, frames)
    persona = PersonaDirection(
        *(reference[f"persona_{name}"] for name in ("unit", "mean", "spread", "reach"))
    )
    own = SelfDirection(*(reference[f"self_{name}"] for name in ("unit", "separation", "spread")))
    shift, cosine = persona_shift(default, persona)
    profiles = {
        "probe_person": probed.accuracy_profile,
        "probe_person_nats": probed.nats_profile,
        "persona_direction": shift,
        "persona_cosine": cosine,
        "self_direction": self_separation(values, labels, frames, own),
    }
    signals = {name: float(np.nanmean(profile)) for name, profile in profiles.items()}
    return {"signals": signals, "profiles": profiles}


def person_erasure(loaded, crossed):
    """`check_erasure` of the person at the final query, beside two erasures that must fail.

    null         {"nothing", "permuted labels": verdict, after}: erasures that leave the person
    null_caught  whether both are called "not erased", without which the verdict counts for nothing;
                 None where there is nothing to erase
    """
    return erasure_of(read_residuals(loaded, crossed).final, crossed)


def erasure_of(values, crossed):
    """`person_erasure` of residuals that are read already, [prompt, layer, unit]."""
    design, null = _design(crossed), {}
    found = check_erasure(values, *design)
    there = found["verdict"] != NOTHING
    for name, eraser in (("nothing", fit_nothing), ("permuted labels", fit_permuted)):
        after = probe_layers(values, *design, eraser)
        null[name] = {"verdict": judge_erasure(there, after), "after": after.accuracy}
    caught = all(own["verdict"] == NOT_ERASED for own in null.values())
    return found | {"null": null, "null_caught": caught if there else None}


def write_reference(path, reference):
    """Save it as an npz of plain arrays."""
    write_npz(path, {name: reference[name] for name in REFERENCE})


def read_reference(path):
    """What `write_reference` saved."""
    return read_npz(path, REFERENCE)


def _design(crossed):
    """(person, frame) of every prompt, [prompt] str each."""
    return np.array([p.category for p in crossed]), np.array([p.frame for p in crossed])


def _check_same(crossed, neutral, values, reference):
    """Refuse a reference of other prompts, or of a model of another shape."""
    for name, prompts in (("crossed", crossed), ("neutral", neutral)):
        if [prompt.id for prompt in prompts] != reference[f"{name}_ids"].tolist():
            raise RunFailed(f"residual stream: the reference is of other {name} prompts")
    if values.shape[1:] != reference["persona_mean"].shape:
        raise RunFailed(
            f"residual stream: the reference is of {reference['persona_mean'].shape} layers and "
            f"units, this model has {values.shape[1:]}"
        )
