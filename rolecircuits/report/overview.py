"""The head of the page and the method."""

from rolecircuits.inputs.arguments import ALPHA, MARGIN
from rolecircuits.inputs.errors import printable
from rolecircuits.report.section import Section
from rolecircuits.runs.record import portable
from rolecircuits.stats.contrasts import names_of

CATEGORY_NAMES = {"self_referent": "self-referent", "third_person": "third person"}
COLUMNS = (
    (
        "model, set, format, run",
        "which run: the model, its prompt set, raw or chat, base or instruct",
    ),
    ("kind", "normalised, sinkfree or raw: which entropy, see above"),
    ("index", "rfc or rsi"),
    ("contrast", "a-b: focus(a) - focus(b); positive: a is the more focused"),
    ("quantity", "an index or a contrast"),
    ("layer, head", "counted from 0"),
    ("estimate", "the number itself"),
    ("low, high", "its 95 % bootstrap-t interval over the unit of the set"),
    ("null", "the same index if attention were uniform over the visible keys"),
    ("p", "of estimate = null, this layer or head alone"),
    ("q", "p corrected by Benjamini-Hochberg over all layers or heads of one kind and quantity"),
    ("p_max", "p corrected by max-T over the same family"),
    (
        "p_primary",
        "max-T over the layers of both indices: the primary family (crossed, normalised)",
    ),
    ("verdict", f"differs (q < {ALPHA}), equivalent (within {MARGIN:g} of its null), or undecided"),
    ("g", "Hedges g of a contrast, with its sign"),
    ("base_, instruct_, diff_", "of the base run, the instruct run, and instruct - base"),
    ("slot_mass_minus_uniform", "attention of the last query on the slot, minus the uniform share"),
    ("kl", "KL of the next token when the head is ablated, in nats (sweep)"),
    ("value, category, row", "entropy of one prompt, or of one frame of a crossed set"),
)
FORMULAS = (
    ("Row entropy", "H = -sum over keys of A ln A, in nats; 0 ln 0 = 0"),
    ("RFC", "1 - H(self-referent) / H(neutral); above 0: self-referent is the more focused"),
    (
        "RSI",
        "(H(confounder) - H(self-referent)) / H(neutral); above 0: more focused than on prompts "
        "about the user",
    ),
    ("Focus", "entropy with its sign turned: focus(a) - focus(b) = H(b) - H(a)"),
    ("Difference of runs", "instruct - base, on the prompts that both runs hold"),
)
KINDS = (
    ("normalised", "every row divided by ln(visible keys): 0 one key, 1 uniform, at any length"),
    (
        "sink-free",
        "normalised after the attention sink (key 0, or a learned sink) is dropped and the "
        "row renormalised",
    ),
    ("raw", "in nats; grows with length, so index values are shown minus their length null"),
)


def category_name(name):
    """A category in words."""
    return CATEGORY_NAMES.get(name, name.replace("_", " "))


def contrast_name(contrast):
    """A contrast in words: self-referent - neutral."""
    sides = [" + ".join(map(category_name, names_of(side))) for side in contrast]
    return " - ".join(f"({text})" if "+" in text else text for text in sides)


def page_title(context):
    """The models of the runs."""
    ids = dict.fromkeys(run.config["model"]["id"] for run in context.runs.values())
    return f"Role-conditioning circuits: {' and '.join(map(shorten, ids))}"


def shorten(text, most=120):
    """`text` on one line without control characters, its middle left out where it is long."""
    text = printable(text)
    return text if len(text) <= most else f"{text[: most - 24]} ... {text[-16:]}"


def page_head(context):
    """What was read, run by run."""
    columns = ("set", "run", "model", "format", "prompts", "frames", "weights (SHA-256)", "made")
    rows = []
    for (name, side), run in context.runs.items():
        model, made = run.config["model"], run.config.get("created")
        weights = (model.get("weights_sha256") or "-")[:16]
        n, frames = len(run.category), len(set(run.frame.tolist()))
        rows.append(
            (name, side, shorten(model["id"]), run.prompt_format, n, frames, weights, made or "-")
        )
    checked = "compared with the SHA-256 of their manifests before they were read"
    files = f"Files of the runs: {checked if context.verified else 'not ' + checked}."
    return {"columns": columns, "rows": rows, "files": files, "notes": context.notes}


def method_section(context):
    """Formulas, sign, kinds, columns, the config of every run and how to repeat it all."""
    configs = [
        (f"{name}, {side}", flatten(run.config)) for (name, side), run in context.runs.items()
    ]
    versions = [
        (
            name,
            side,
            run.config.get("schema_version", "-"),
            _commit(run.config),
            portable(run.path or "-"),
        )
        for (name, side), run in context.runs.items()
    ]
    return Section(
        "method",
        "Method",
        "What each number is, which sign it has, and how to make it again.",
        {
            "formulas": FORMULAS,
            "kinds": KINDS,
            "columns": COLUMNS,
            "configs": configs,
            "versions": versions,
            "command": context.command,
        },
        tables={
            "configs.csv": [
                {"run": label, "field": field, "value": value}
                for label, fields in configs
                for field, value in fields
            ]
        },
    )


def _commit(config):
    git = config.get("git") or {}
    return f"{str(git.get('commit', '-'))[:12]}{', with changes' if git.get('dirty') else ''}"


def flatten(value, name=""):
    """A config as rows (dotted name, text); long lists are cut."""
    if isinstance(value, dict) and value:
        return [
            row for key, v in value.items() for row in flatten(v, f"{name}.{key}" if name else key)
        ]
    text = "" if value is None else str(value)
    return [(name, text if len(text) <= 300 else f"{text[:300]}... ({len(text)} characters)")]
