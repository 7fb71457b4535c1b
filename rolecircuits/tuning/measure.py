"""The prompt sets of a tuning study, tokenised once, and what a checkpoint answers to them.

original, crossed, deixis    as the study feeds them
raw_original, raw_crossed    step 0 again, in the other framing: as raw text
"""

import copy
from dataclasses import dataclass, replace

from rolecircuits.capture import activations, attention, feeding, frames
from rolecircuits.capture.tokens import TokenizedPrompt, tokenize_all
from rolecircuits.inputs.errors import RunFailed
from rolecircuits.inputs.prompt_sets import built_in_prompts, check_turns, cut_prompts
from rolecircuits.inputs.specs import PromptFormat
from rolecircuits.runs import record
from rolecircuits.runs.arrays import Run
from rolecircuits.runs.files import write_json
from rolecircuits.runs.publish import write_manifest

RAW_SET = "raw_"


@dataclass
class PromptSet:
    """A prompt set as this model is fed it.

    name  of its run folders      prompts, tokenized  without the frames that do not match
    """

    name: str
    prompts: list
    tokenized: list[TokenizedPrompt]
    form: PromptFormat
    how_fed: dict
    left_out: dict


def open_set(name, tokenizer, form, per_category):
    """The PromptSet of a name; a name that begins with "raw_" is fed as raw text."""
    if name.startswith(RAW_SET):
        form = PromptFormat(bos=form.bos)
    source = name.removeprefix(RAW_SET)
    prompts = cut_prompts(built_in_prompts(source), per_category)
    check_turns(prompts, form.prompt_format, source)
    tokenized, left_out = frames.keep_matched(tokenize_all(prompts, tokenizer, form))
    prompts = [prompt for prompt in prompts if prompt.frame not in left_out]
    how_fed = feeding.describe_feeding(tokenized, tokenizer, form)
    return PromptSet(name, prompts, tokenized, form, how_fed, left_out)


def capture_set(loaded, prompt_set, args, folder):
    """Capture a set into a run folder (which is made) and return the Run.

    args  of tuning_study.py, as the run's config keeps them
    """
    folder.mkdir()
    captured = attention.capture_patterns(loaded, prompt_set.tokenized, args.batch_size)
    if captured.failed:
        raise RunFailed(f"{folder.name}: prompt {captured.failed[0][0]}: {captured.failed[0][1]}")
    args = copy.copy(args)
    args.prompts = prompt_set.name.removeprefix(RAW_SET)
    args.prompt_format = prompt_set.form.prompt_format
    args.system_prompt = prompt_set.form.system_prompt
    fed = record.describe_prompts(
        args, prompt_set.prompts, prompt_set.how_fed, left_out=prompt_set.left_out
    )
    config = record.describe_run("tuning_study.py", args, loaded.facts, fed, {}, {})
    how = {"method": "patterns", "raw": "none", "batch_size": captured.batch_size}
    config["capture"] = how
    activations.save_capture(folder, loaded, prompt_set.tokenized, captured, config)
    write_json(folder / record.CONFIG, config)
    write_manifest(folder)
    texts = [{"text": prompt.text} for prompt in prompt_set.tokenized]
    return Run(folder, config, **captured.arrays, prompts=texts)


def with_facts(loaded, **facts):
    """The same loaded model (and what is known of its attention) under other facts."""
    return replace(loaded, facts=loaded.facts | facts)
