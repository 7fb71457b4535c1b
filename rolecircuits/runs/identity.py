"""Is a finished run the one that these flags would make? Said from its record, no model is loaded.

The same are: the model's id, revision, dtype and how it is fed (flags), the weights of a local
folder, or of an adapter and its local base (SHA-256; their other files are older than the run), the
prompts (SHA-256), and of edits the plan, its controls and the seed. Where and how a run was made
(device, batch size, engine) does not matter. A branch of the hub that has moved since is not
noticed: nothing is asked from the network.
"""

import datetime
from pathlib import Path

from rolecircuits.inputs.categories import prompt_set_sha256
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.files import follow_links, sha256_of
from rolecircuits.inputs.specs import PromptFormat
from rolecircuits.inputs.weights import named_weights, weights_sha256
from rolecircuits.runs.files import read_json
from rolecircuits.runs.record import portable_arguments

MODEL = ("model_id", "revision", "dtype", "trust_remote_code")
FEEDING = ("prompt_format", "system_prompt", "bos", "chat_template", "template_arg", "date")
OF_EDITS = ("controls", "seed", "max_tokens")  # those that the script has
ADAPTER = ("adapter_model.safetensors", "adapter_config.json")  # hashed in this order


def why_again(link, args, prompts, plan=None):
    """Why the run that `link` names is not the one asked for, or None if it is.

    args  of the script that makes it    prompts  all of the set    plan  as select_candidates
    gives it, of an intervention run or of answers: its held-out prompts are fed
    """
    folder = follow_links(link)
    if not (folder / "manifest.json").is_file():
        return "it is not there"
    try:
        return _difference(read_json(folder / "experiment_config.json"), args, prompts, plan)
    except (KeyError, TypeError, AttributeError, ValueError):
        return f"{printable(folder)} is damaged, or of another version"
    except UserError as error:
        return str(error)


def _difference(config, args, prompts, plan):
    if config["status"] != "complete":
        return "some prompts failed"
    was, now = config["arguments"], portable_arguments(args)
    of_edits = [flag for flag in OF_EDITS if plan and flag in now]
    for flag in (*MODEL, *FEEDING, *of_edits):
        own = list(now[flag]) if isinstance(now[flag], tuple) else now[flag]
        if was[flag] != own:
            return f"--{flag} was {printable(was[flag])}, is {printable(own)}"
    template = (config["prompts"].get("chat_template") or {}).get("text")
    if (text := PromptFormat.of(args).template_text) and text != template:
        return "the file of --chat_template has changed"
    told, today = config["prompts"].get("date"), datetime.date.today().isoformat()
    if told and now["date"] is None and told != today:
        return f"its chat template was told {printable(told)} as today's date"
    if not plan and now["raw"] not in (None, "none", config["capture"]["raw"]):
        return f"--raw was {printable(config['capture']['raw'])}, is {now['raw']}"
    left_out = config["prompts"]["frames_left_out"]
    fed = [prompt for prompt in prompts if prompt.frame not in left_out]
    if plan:
        fed = [prompt for prompt in fed if prompt.id in plan["held_out"]]
        if list(map(_named, config["interventions"])) != list(map(_named, plan["interventions"])):
            return "the plan has changed"
    if prompt_set_sha256(fed) != config["prompts"]["sha256"]:
        return "the prompts have changed"
    return _changed_files(Path(args.model_id).expanduser(), config)


def _named(entry):
    """What an entry of a plan names, as it is in a plan or recorded with its folder."""
    return {key: value for key, value in entry.items() if key != "folder" and value is not None}


def _changed_files(model, config):
    """What changed in a local model since the run; None for one of the hub, or a bundled one."""
    if not model.exists():
        return None
    facts, folder = config["model"], model if model.is_dir() else model.parent
    if gguf := facts.get("gguf"):
        file = model if model.is_file() else next(folder.glob("*.gguf"), None)
        same = file is not None and sha256_of(file) == gguf["sha256"]
        return None if same else "the GGUF has changed"
    if adapter := facts.get("adapter"):
        own = [folder / name for name in ADAPTER]
        same = all(file.is_file() for file in own) and weights_sha256(own) == adapter["sha256"]
        base = Path(adapter["base"]).expanduser()
        if base.is_dir() and weights_sha256(named_weights(base)) != adapter["base_sha256"]:
            return "the weights of the adapter's base have changed"
    else:
        same = weights_sha256(named_weights(folder)) == facts["weights_sha256"]
    if not same:
        return "the model's weights have changed"
    made = datetime.datetime.fromisoformat(config["created"]).timestamp()
    files = [file for file in sorted(folder.iterdir()) if file.is_file()]
    newer = [file.name for file in files if file.stat().st_mtime > made + 1]
    return f"{printable(newer[0])} in the model's folder is newer" if newer else None
