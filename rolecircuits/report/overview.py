"""The head of the page and the method."""

from rolecircuits.inputs.arguments import ALPHA, MARGIN
from rolecircuits.inputs.errors import printable
from rolecircuits.report.section import Section, run_facts
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
    ("factor", "of design_audit.csv: estimate is the share of the variance between prompts"),
    ("slot_excess_estimate", "attention of the last token on the slot, minus the uniform share"),
    ("kl_estimate", "KL of the next token when the head is ablated, in nats (sweep)"),
    ("row", "of head_points.csv: a prompt, or a frame of a crossed set; estimate is its entropy"),
    (
        "part",
        "part of the text; estimate: its share of the last token's attention, null: that of "
        "uniform attention",
    ),
    ("head", "mean: the mean over heads"),
    ("first_layer, last_layer", "an entropy is the mean over these layers"),
    (
        "entropy_, head_entropy_, sink_mass_, attention_",
        "of the chosen layers; of the chosen head; of the first token; of one token",
    ),
    ("text, token, answer", "what was fed, its place among the tokens, what the model said"),
    ("edit", "name of the edit in its plan; candidate: chosen, control: another head of its layer"),
    (
        "kl_, rfc_change_, rsi_change_, surprisal_change_",
        "effects of an edit, edited - unedited; nats, RFC and RSI of later layers",
    ),
    (
        "_control, _rank",
        "mean effect of the other heads of the layer; place in size among all, 1 the largest",
    ),
    ("n, pool", "prompts; heads that are ranked"),
    ("mean_rank, expected_rank, smallest_p", "of the exact test of the ranks of one kind of edit"),
    ("unedited, edited", "answers before and after"),
    (
        "drift",
        "last third of the turns of a role against the first; positive: focused more, or more "
        "on the sink",
    ),
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
    configs = {key: flatten(run.config) for key, run in context.runs.items()}
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
            "configs": [(", ".join(key), rows) for key, rows in configs.items()],
            "versions": versions,
            "command": context.command,
        },
        tables={
            "configs.csv": [
                run_facts(context.runs[key], key) | {"field": field, "value": value}
                for key, rows in configs.items()
                for field, value in rows
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
