"""Was a plan made for the model, the prompt format and the prompts that are asked for now?

`source` of a plan, as analyze_results.py writes it, names them. Heads of another model are other
heads, so such a plan is refused before the model is loaded; another format or prompt set is said in
a line. A plan without source was written by hand and is taken as it is.
"""

from pathlib import Path

from rolecircuits.inputs import weights
from rolecircuits.inputs.categories import prompt_set_sha256
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.files import read_strict_json
from rolecircuits.runs.record import portable


def read_source(path, flag="--config_file"):
    """`source` of a plan file, {} where it has none."""
    root = read_strict_json(Path(path), flag)
    source = root.get("source") if isinstance(root, dict) else None
    return source if isinstance(source, dict) else {}


def source_models(source):
    """The model ids that a plan is for; [] where it names none."""
    named = source.get("model_id")
    named = named if isinstance(named, list) else [named]
    return [name for name in named if isinstance(name, str)]


def check_source(path, args, prompts):
    """Refuse a plan made for another model; returns what else is not as it was, a line each.

    args  with model_id and prompt_format    prompts  those that are asked for, held out or not
    """
    source = read_source(path)
    models, notes = source_models(source), []
    if models and not is_model(args.model_id, models, source.get("weights_sha256")):
        named, own = printable(" or ".join(models))[:200], printable(args.model_id)[:200]
        raise UserError(
            f"--config_file {path}: its heads are those of {named}, not of {own}; "
            "analyze_results.py on a run of this model makes a plan for it, and a plan without "
            '"source" is run on any model'
        )
    form = source.get("prompt_format")
    if isinstance(form, str) and form != args.prompt_format:
        chosen = f"the plan's heads were chosen on {printable(form)[:40]} prompts"
        notes.append(f"{chosen}; these are {args.prompt_format} prompts")
    sha256, left_out = source.get("prompt_set_sha256"), source.get("frames_left_out")
    left_out = left_out if isinstance(left_out, list) else []
    fed = [prompt for prompt in prompts if not prompt.frame or prompt.frame not in left_out]
    if isinstance(sha256, str) and sha256 != prompt_set_sha256(fed):
        was = printable(source.get("prompts", "prompts with another SHA-256"))[:60]
        notes.append(f"the plan's heads were chosen on other prompts than these ({was})")
    return notes


def is_model(model_id, names, weights_sha256=None):
    """Whether a model is one of those named, by its id or, of a folder, by its weights.

    weights_sha256  of the model that was named, as a run records it
    """
    names = [str(Path(name).expanduser()) if name.startswith("~") else name for name in names]
    own = Path(model_id).expanduser()
    if model_id in names or portable(model_id) in map(portable, names):
        return True
    if not own.is_dir():
        return False
    if any(Path(name).is_dir() and own.samefile(name) for name in names):
        return True
    if not weights_sha256:
        return False
    return weights.weights_sha256(weights.named_weights(own)) == weights_sha256
