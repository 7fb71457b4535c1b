"""What run_pipeline.py has to do for a family: which runs, which heads to cut, and what is done.

With --skip_analysis a run that is there as these flags would make it is not made again, and neither
are interventions with the same plan or the same answers (runs/identity.py says what must be the
same).
"""

from pathlib import Path

from rolecircuits.inputs.categories import Prompt, is_crossed
from rolecircuits.inputs.errors import printable
from rolecircuits.inputs.files import follow_links
from rolecircuits.models.families import ANSWERS, LINKS, PREFIXES, SIDES, edited_study
from rolecircuits.runs.files import pack_folder
from rolecircuits.runs.identity import why_again
from rolecircuits.runs.load import load_run, resolve_run
from rolecircuits.runs.publish import publish_files

N_ANSWERED = 4  # frames (of a set without them: prompts of each category) that are answered


def family_payload(studies):
    """The payload of run_pipeline.family_task: {"sets", "top_k", "edited", "plan", ...}.

    sets     [the payload of a Study, and "runs", those that are to be made]
    plan     what `choose_heads` gives; None where the base run that is to be made chooses the heads
    cut      whether they are to be cut     kept      whether they were, and it is there
    answers  sides that are to answer       answered  sides whose answers are there
    """
    args, edited, sets = studies[0].args, edited_study(studies), []
    for study in studies:
        made = [run for run in SIDES if not (args.skip_analysis and is_done(study, run))]
        sets.append(study.payload | {"runs": made})
    study, plan, kept, answered = studies[edited], None, False, []
    cut, answers = not args.skip_interventions, [] if args.skip_answers else list(SIDES)
    if not cut and not answers:
        plan = {"interventions": [], "held_out": []}
    elif "base" not in sets[edited]["runs"]:
        plan = choose_heads(study.runs["base"], args.top_k, args.seed, not args.no_verify)
        kept = cut and bool(plan["interventions"]) and is_done(study, "edits", plan)
        cut = cut and bool(plan["interventions"]) and not kept
        answered = [side for side in answers if are_answered(study, side, plan)]
        answers = [side for side in answers if side not in answered]
    done = {"kept": kept, "answered": answered}
    payload = {"sets": sets, "top_k": args.top_k, "edited": edited, "plan": plan}
    return payload | {"cut": cut, "answers": answers} | done


def choose_heads(folder, top_k, seed, verify=True):
    """ablation_candidates.json of a run; says why if it has none."""
    from rolecircuits.edits.candidates import select_candidates  # numpy: not for --help

    plan = select_candidates(load_run(folder, verify), top_k, seed)
    if not plan["interventions"]:
        print(f"no interventions: {printable(plan['note'])}")
    return plan


def has_work(payload):
    """Whether a run, an edit or an answer of this payload is to be made."""
    return payload["cut"] or bool(payload["answers"]) or any(s["runs"] for s in payload["sets"])


def is_done(study, stage, plan=None):
    """Whether a stage is there as these flags would make it; says so, or why it is made."""
    link, prompts = study.links[stage], [Prompt(**own) for own in study.payload["prompts"]]
    why = why_again(link, study.stages[stage], prompts, plan)
    there = link.parent / follow_links(link).resolve().name
    said = f"made, {why}" if why else f"skipped: {printable(there)} is there"
    print(f"{study.label}, {stage.replace('_', ' ')}: {said}")
    return why is None


def are_answered(study, side, plan):
    """Whether the answers of a side are there as this plan would have them."""
    fed = choose_answered([Prompt(**own) for own in study.payload["prompts"]], plan)
    own = {"interventions": answer_cuts(side, plan), "held_out": [prompt.id for prompt in fed]}
    return is_done(study, ANSWERS[side], own)


def answer_cuts(side, plan):
    """The interventions under which a side answers again: the base model, whose heads they are."""
    return plan["interventions"] if plan and side == "base" else []


def entries_of(cuts):
    """The entries of a plan's interventions; [] of none."""
    from rolecircuits.edits.plan import parse_entries  # pydantic: only where heads are cut

    return parse_entries(cuts, "plan") if cuts else []


def choose_answered(prompts, plan):
    """The prompts that are answered: of the first N_ANSWERED held-out frames all persons, with one
    filler; of a set without frames as many of each category.

    plan  None, or without held-out prompts, where none could be made: the first of all
    """
    held_out = set(plan["held_out"]) if plan else set()
    prompts = [prompt for prompt in prompts if not held_out or prompt.id in held_out]
    if is_crossed(prompts):
        filler = {}  # the first of each frame
        for prompt in prompts:
            filler.setdefault(prompt.frame, prompt.filler)
        frames = list(filler)[:N_ANSWERED]
        return [p for p in prompts if p.frame in frames and p.filler == filler[p.frame]]
    places, chosen = {}, []
    for prompt in prompts:
        places[prompt.category] = places.get(prompt.category, 0) + 1
        if places[prompt.category] <= N_ANSWERED:
            chosen.append(prompt)
    return chosen


def pack_stages(stages):
    """{stage: the files of its run} of those that were made, of {stage: its parsed flags}."""
    links = {stage: Path(args.output_dir, LINKS[stage]) for stage, args in stages.items()}
    made = {stage: link for stage, link in links.items() if link.exists()}
    return {stage: pack_folder(resolve_run(link)) for stage, link in made.items()}


def publish_stages(study, published, engine):
    """Publish what `pack_stages` gave on another machine; says where.

    engine  facts of the engine that made them
    """
    for stage, files in published.items():
        args = study.stages[stage]
        ours = {"arguments": args, "engine": engine}
        folder = publish_files(files, args.output_dir, LINKS[stage], PREFIXES[stage], ours)
        print(f"{study.folder}: {stage.replace('_', ' ')} -> {printable(folder)}")
