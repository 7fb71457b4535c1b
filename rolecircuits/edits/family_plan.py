"""What run_pipeline.py has to do for a family: which runs, which heads to cut, and what is done.

With --skip_analysis a run that is there as these flags would make it is not made again, and neither
are interventions with the same plan (runs/identity.py says what must be the same).
"""

from rolecircuits.inputs.categories import Prompt
from rolecircuits.inputs.errors import printable
from rolecircuits.inputs.files import follow_links
from rolecircuits.models.families import RUNS, edited_study
from rolecircuits.runs.identity import why_again


def family_payload(studies, choose_heads):
    """The payload of run_pipeline.family_task: {"sets", "top_k", "edited", "plan", "kept"}.

    sets  [the payload of a Study, and "runs", those that are to be made]
    plan  None where the base run that is to be made chooses the heads; without interventions where
          none are to be made    kept  whether they are there
    choose_heads  function (run, top_k, seed, verify) -> plan
    """
    args, edited, sets, kept = studies[0].args, edited_study(studies), [], False
    for study in studies:
        made = [run for run in RUNS if not (args.skip_analysis and is_done(study, run))]
        sets.append(study.payload | {"runs": made})
    plan, study = {"interventions": []} if args.skip_interventions else None, studies[edited]
    if plan is None and "base" not in sets[edited]["runs"]:
        plan = choose_heads(study.runs["base"], args.top_k, args.seed, not args.no_verify)
        kept = bool(plan["interventions"]) and is_done(study, "edits", plan)
        plan = plan | {"interventions": []} if kept else plan
    return {"sets": sets, "top_k": args.top_k, "edited": edited, "plan": plan, "kept": kept}


def has_work(payload):
    """Whether a run or an edit of this payload is to be made."""
    plan = payload["plan"]
    return plan is None or bool(plan["interventions"]) or any(s["runs"] for s in payload["sets"])


def is_done(study, stage, plan=None):
    """Whether a stage is there as these flags would make it; says so, or why it is made."""
    link, prompts = study.links[stage], [Prompt(**own) for own in study.payload["prompts"]]
    why = why_again(link, study.stages[stage], prompts, plan)
    there = link.parent / follow_links(link).resolve().name
    said = f"made, {why}" if why else f"skipped: {printable(there)} is there"
    print(f"{study.label}, {stage}: {said}")
    return why is None
