"""Every table of docs/PUBLISHED_STUDY.md, computed from the tables that the public study published.

    git clone https://github.com/mduffster/self-referent-test
    git -C self-referent-test checkout 3c5ca9a
    git -C self-referent-test show 62a5050:figures/qwen/comparison/detailed_comparison.csv \\
        > self-referent-test/qwen_earlier.csv
    python benchmarks/published_study.py self-referent-test

The folder may also hold copies of the tables under the short names of TABLES. Nothing of the study
is shipped with this project, but what its prompts amount to is, in benchmarks/data/: the number of
tokens of every prompt under three vocabularies, and what the study's erased labels say of it. With
--vocabulary the tokens are counted again, from the study's own prompts.py (read, never run), and
written there: `python benchmarks/check_frames.py --help` says where the vocabularies come from.

    python benchmarks/published_study.py self-referent-test \\
        --vocabulary mistral=vocabularies/mistral_common/data/tokenizer.model.v1 \\
        --vocabulary llama=vocabularies/llama_models/llama3/tokenizer.model \\
        --vocabulary qwen=vocabularies/dashscope/resources/qwen.tiktoken
"""

import ast
import csv
import json
import sys
from pathlib import Path

import numpy as np
from scipy import stats

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

from check_frames import load_vocabularies, name_path  # noqa: E402

from rolecircuits.inputs.errors import UserError  # noqa: E402
from rolecircuits.inputs.parser import Parser, run_script  # noqa: E402
from rolecircuits.stats import profiles  # noqa: E402
from rolecircuits.stats.original_study import pooled_length_null  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
FACTS = ROOT / "benchmarks" / "data" / "published_prompts.json"
FAMILIES = {"llama": "Llama", "mistral": "Mistral", "qwen": "Qwen"}
COMPARED = FAMILIES | {"qwen_earlier": "Qwen, earlier table"}
BOS = {"mistral": 1, "llama": 1, "qwen": 0}  # TransformerLens's rule, rolecircuits/models/bos.py
PARTS = ("layer 0", "its SD over heads", "median SD of the others")
# short name of a table: where the public repository has it
TABLES = {
    **{f"{name}.csv": f"figures/{name}/comparison/detailed_comparison.csv" for name in FAMILIES},
    "qwen_earlier.csv": "qwen_earlier.csv",
    "cross_model_analysis_results.json": "cross_model_analysis_results.json",
    **{
        f"patching_candidates_{name}.csv": (
            f"activation_patching_results_robust/patching_candidates_{name}.csv"
        )
        for name in ("llama", "mistral")
    },
    **{
        f"{name}.csv": f"linear_probe_analysis_results/{name}.csv"
        for name in (
            *("summary_statistics", "table1_cross_model_comparison"),
            *("table2b_qwen_ood_transfer", "table2c_qwen_projector_transfer"),
        )
    },
}
POSITIONS = {"bos": "token 1", "first_content": "token 2", "mid": "middle", "last": "last"}
HEADS = 32 * 32  # of Llama and of Mistral: all that a candidate is chosen from
# Read in the study's code: what an AUC is divided by, and the share of it that passes.
FULL, SHARE = 0.60, 0.70


def find_table(folder, name):
    """The path of a published table in a clone, or in a folder of copies."""
    for place in (TABLES[name], name):
        if (folder / place).is_file():
            return folder / place
    raise UserError(f"{folder}: neither {TABLES[name]} nor {name} is in it")


def read_csv(folder, name):
    """Rows of a published table as dicts of text."""
    with open(find_table(folder, name), encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_numbers(folder, name):
    """{column: [row] float64} of a table of numbers."""
    rows = read_csv(folder, name)
    return {column: np.array([float(row[column]) for row in rows]) for column in rows[0]}


def read_changes(folder):
    """{name: profile of instruct - base} of the three families and of Qwen's earlier table."""
    paths = {name: find_table(folder, f"{name}.csv") for name in COMPARED}
    return profiles.read_profiles(paths, "original")[0]


def table(columns, rows):
    """A Markdown table as text."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def with_interval(row, *names):
    """AUC with its interval from a row of text."""
    mean, low, high = (float(row[name]) for name in names)
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def reproduced(folder, facts):
    """The study's own summary beside what its tables give."""
    file = find_table(folder, "cross_model_analysis_results.json")
    published = json.loads(file.read_text(encoding="utf-8"))
    changes, rows = read_changes(folder), []
    for name in COMPARED:
        own = profiles.summarise_profile(name, "rfc_diff", changes[name], "original")
        said = published["summary_stats"][name.removesuffix("_earlier")]
        share = said["significant_negative"] / said["total_layers"]
        cells = [f"{COMPARED[name]}: mean change of RFC, layers below -0.01"]
        cells += [f"{said['mean']:+.4f}, {share:.1%}"]
        rows.append([*cells, f"{own['mean']:+.4f}, {own['share_below']:.1%}"])
    pair = {name: changes[name] for name in ("llama", "mistral")}
    own = profiles.correlate_models(pair, "original")[0]
    said = published["correlations"]["llama_vs_mistral"]
    spearman = stats.spearmanr(*(pair[name]["rfc_diff"] for name in pair))
    r, p = (f"{said[f'pearson_{x}']:.3f}" for x in "rp")
    again = f"{own['plain_r']:.3f}, {own['independent_p']:.3f}"
    rows.append(["Llama against Mistral: Pearson's r, p", f"{r}, {p}", again])
    r, p = (f"{said[f'spearman_{x}']:.3f}" for x in "rp")
    again = f"{own['spearman_r']:.3f}, {spearman.pvalue:.3f}"
    rows.append(["Llama against Mistral: Spearman's r, p", f"{r}, {p}", again])
    return table(["quantity", "published", "from its tables"], rows)


def lengths(folder, facts):
    """Tokens a prompt and the indices of uniform attention, by family."""
    rows = []
    for name, title in FAMILIES.items():
        counts = {c: np.array(n) + BOS[name] for c, n in facts["tokens"][name].items()}
        null = pooled_length_null(counts)
        means = [f"{counts[c].mean():.2f}" for c in ("self_referent", "neutral", "confounder")]
        bos = "yes" if BOS[name] else "no"
        rows.append([title, bos, *means, f"{null['rfc']:+.3f}", f"{null['rsi']:+.3f}"])
    columns = ["family", "BOS fed", "self", "neutral", "confounder", "RFC null", "RSI null"]
    return table(columns, rows)


def levels(folder, facts):
    """RFC and RSI of every model beside their length nulls."""
    rows = []
    for name, title in FAMILIES.items():
        numbers = read_numbers(folder, f"{name}.csv")
        counts = {c: np.array(n) + BOS[name] for c, n in facts["tokens"][name].items()}
        null = pooled_length_null(counts)
        for side in ("base", "instruct"):
            cells = [f"{title} {side}"]
            for index in ("rfc", "rsi"):
                values = numbers[f"{index}_mean_{side}"]
                low, high = (numbers[f"{index}_ci_{end}_{side}"] for end in ("low", "high"))
                zero, above = (low > 0).sum(), (low > null[index]).sum()
                below = (high < null[index]).sum()
                cells += [f"{values.mean():+.3f}", f"{np.median(values):+.3f}"]
                cells += [f"{null[index]:+.3f}", f"{zero}", f"{above}, {below}"]
            heads = {int(n) for n in numbers[f"n_heads_{side}"]}
            rows.append([*cells, len(values), *heads])
    part = ["mean", "median", "null", "> 0", "> null, < null"]
    columns = ["model", *(f"{index} {x}" for index in ("RFC", "RSI") for x in part)]
    return table([*columns, "layers", "heads read"], rows)


def changes_by_layer(folder, facts):
    """Changes instruct - base: means, the layer that is farthest off, layers by own intervals."""
    rows = []
    for name, profile in read_changes(folder).items():
        for column in profiles.COLUMNS:
            row = profiles.summarise_profile(name, column, profile, "original")
            index = column.removesuffix("_diff").upper()
            cells = [f"{COMPARED[name]} {index}", f"{row['mean']:+.4f}", f"{row['median']:+.4f}"]
            cells += [f"{row['farthest']:+.3f} @{row['farthest_layer']}"]
            cells += [f"{row['farthest_mads']:.0f}", f"{row['mean_without']:+.4f}"]
            cells += [f"{row['interval_below']}, {row['interval_above']}", row["n_layers"]]
            rows.append([*cells, f"{row['interval_half_width']:.3f}"])
    columns = ["change of", "mean", "median", "farthest layer", "MADs off", "mean without it"]
    columns += ["layers < 0, > 0 by own interval", "layers", "median half width"]
    return table(columns, rows)


def first_layer(folder, facts):
    """What layer 0 of Qwen holds: mean over heads and their standard deviation."""
    rows = []
    for name in ("qwen", "qwen_earlier"):
        numbers = read_numbers(folder, f"{name}.csv")
        for index in ("rfc", "rsi"):
            cells = [f"{COMPARED[name]} {index.upper()}"]
            for side in ("base", "instruct"):
                mean, sd = (numbers[f"{index}_{part}_{side}"] for part in ("mean", "std"))
                cells += [f"{mean[0]:+.2f}", f"{sd[0]:.1f}", f"{np.median(sd[1:]):.2f}"]
            rows.append(cells)
    columns = ["table", *(f"{side} {x}" for side in ("base", "instruct") for x in PARTS)]
    return table(columns, rows)


def correlations(folder, facts):
    """Pearson's r of the changes of RFC under several nulls."""
    known = {name: profile for name, profile in read_changes(folder).items() if name in FAMILIES}
    rows = []
    for row in profiles.correlate_models(known, "original"):
        if row["index"] == "rfc_diff":
            pair = f"{FAMILIES[row['model_a']]} - {FAMILIES[row['model_b']]}"
            cells = [pair, f"{row['plain_r']:+.3f}", f"{row['independent_p']:.3f}"]
            cells += [f"{row['effective_n']:.1f} of {row['n_points']}", f"{row['plain_p']:.2f}"]
            cells += [f"{row[name]:.2f}" for name in ("plain_shift_p", "phase_p")]
            cells += [f"{row['differences_r']:+.3f}", f"{row['quadratic_r']:+.3f}"]
            cells += [f"{row['quadratic_p']:.2f}"]
            ends = [f"{row[f'left_out_{end}']:+.2f}" for end in ("low", "high")]
            rows.append([*cells, " to ".join(ends)])
    columns = ["changes of RFC", "r", "p, all layers free", "effective layers", "p with these"]
    columns += ["p by shifts", "p by phases", "r of changes from layer to layer"]
    columns += ["r without a parabola", "its p", "r without any one layer"]
    return table(columns, rows)


def candidates(folder, facts):
    """The heads that the study proposes for patching, with a sign test of their consistency."""
    rows = []
    for name in ("llama", "mistral"):
        for row in read_csv(folder, f"patching_candidates_{name}.csv"):
            share = float(row["did_consistency"])
            base, instruct = (float(row[f"self_{side}_median"]) for side in ("base", "instruct"))
            cells = [FAMILIES[name], row["rank"], row["layer_head"].replace("_", "/")]
            cells += [f"{float(row['did_median']):+.3f}"]
            cells += [f"{float(row['did_log_ratio_median']):+.2f}", f"{share:.2f}"]
            rows.append([*cells, f"{sign_test(row):.2g}", f"{base:.2f}", f"{instruct:.2f}"])
    columns = ["family", "rank", "head", "DiD, nats", "DiD of logs", "consistency"]
    return table([*columns, "sign test p", "H self, base", "H self, instruct"], rows)


def candidates_counted(folder, facts):
    """How many candidates rise, pass a sign test over all heads, or were proposed before."""
    plan = json.loads((ROOT / "targeted_interventions.json").read_text(encoding="utf-8"))
    first = {f"{entry['layer']}_{entry['head']}" for entry in plan["interventions"]}
    rows = []
    for name in ("llama", "mistral"):
        found = read_csv(folder, f"patching_candidates_{name}.csv")
        rising = sum(float(row["did_median"]) > 0 for row in found)
        passed = sum(sign_test(row) * HEADS < 0.05 for row in found)
        both = len(first & {row["layer_head"] for row in found}) if name == "mistral" else "-"
        rows.append([FAMILIES[name], len(found), rising, passed, both])
    columns = ["family", "heads", "DiD > 0", f"sign test passes over {HEADS:,} heads"]
    return table([*columns, "among the 5 proposed first"], rows)


def sign_test(row):
    """p of the share of prompts with one sign, as if it were not the sign of the majority."""
    n = int(row["n_self"])
    return stats.binomtest(round(float(row["did_consistency"]) * n), n).pvalue


def probes(folder, facts):
    """AUC of the probes self against neutral after the erasure, by token position."""
    rows = {}
    for row in read_csv(folder, "table1_cross_model_comparison.csv"):
        cell = with_interval(row, "auc_mean", "auc_lower", "auc_upper")
        cell += " *" if row["passes_threshold"] == "True" else ""
        rows.setdefault(f"{row['model']} {row['version']}", {})[row["token_position"]] = cell
    said = {
        f"{row['Model']} {row['Version']}": row["Has_Non_Lexical_Circuit"]
        for row in read_csv(folder, "summary_statistics.csv")
    }
    columns = ["model", *POSITIONS.values(), "non-lexical circuit?"]
    body = [[name, *(cells[x] for x in POSITIONS), said[name]] for name, cells in rows.items()]
    return table(columns, body)


def erased_labels(folder, facts):
    """How many prompts of a category the study's erased labels call prompts with a pronoun."""
    rows = [[title, *map(sum, facts[key].values())] for key, title in LABELS.items()]
    columns = ["erased label", *(name.replace("_", " ") for name in facts["substring"])]
    return table(columns, rows)


LABELS = {
    "substring": "table 1, 2: any of you, I, my, he, she, his, her, as letters",
    "words": "pairwise tables: a pronoun as a word",
}


def pass_marks(folder, facts):
    """The transfer tests of the study: AUC, and the mark that it had to reach."""
    rows = []
    for row in read_csv(folder, "table2b_qwen_ood_transfer.csv"):
        auc, share = float(row["ood_auc"]), float(row["retention"])
        rows.append([f"other first words, {row['version']}", auc, auc / share, row["passes"]])
    for row in read_csv(folder, "table2c_qwen_projector_transfer.csv"):
        direction = row["direction"].replace("→", " to ")
        rows.append([f"transfer, {direction}", float(row["auc"]), FULL, row["passes"]])
    body = [
        [name, f"{auc:.3f}", f"{full:.2f}", f"{SHARE * full:.2f}", {"True": "yes"}.get(said, "no")]
        for name, auc, full, said in rows
    ]
    return table(["test of Qwen", "AUC", "taken as 100 %", "has to reach", "passes"], body)


BUILDERS = {
    "reproduced": reproduced,
    "lengths": lengths,
    "levels": levels,
    "changes": changes_by_layer,
    "layer 0": first_layer,
    "correlations": correlations,
    "candidates": candidates,
    "candidates counted": candidates_counted,
    "probes": probes,
    "erased labels": erased_labels,
    "pass marks": pass_marks,
}


def build_tables(folder, facts):
    """{name: Markdown} of every table of the page."""
    return {name: build(folder, facts) for name, build in BUILDERS.items()}


def read_facts():
    """What is recorded of the study's prompts: {"tokens": ..., "substring": ..., "words": ...}."""
    return json.loads(FACTS.read_text(encoding="utf-8"))


def read_prompts(path):
    """{category: texts} of the lists in the study's prompts.py, which is parsed and not run."""
    found = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and node.targets[0].id.endswith("_PROMPTS"):
            name = node.targets[0].id.removesuffix("_PROMPTS").lower()
            found[name] = ast.literal_eval(node.value)
    return found


def has_letters(text):
    """The label that the study's tables 1 and 2 erase: letters of a pronoun anywhere in the text.

    "How does the internet work?" has them (the), "How tall am I?" has not.
    """
    low = text.lower()
    first = " i " in low or low.startswith("i ") or " my " in low
    return first or any(letters in low for letters in ("you", "he", "she", "his", "her"))


def has_word(text):
    """The label of its pairwise tables, for these prompts: whether a pronoun stands in the text."""
    words = {word.strip("?.,!") for word in text.lower().split()}
    persons = {"you", "your", "yourself", "i", "me", "my", "he", "she", "his", "her", "him"}
    return bool(words & persons)


def count_facts(prompts, vocabularies):
    """The facts of FACTS from the study's prompts; {name: Vocabulary}."""
    tokens = {
        name: {c: [len(v.encode(text)) for text in texts] for c, texts in prompts.items()}
        for name, v in vocabularies.items()
    }
    labels = {
        key: {c: [int(label(text)) for text in texts] for c, texts in prompts.items()}
        for key, label in (("substring", has_letters), ("words", has_word))
    }
    return {"tokens": tokens} | labels


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a clone of the public repository, or copies")
    again = "count tokens again: llama, mistral and qwen, each once"
    parser.add_argument(
        "--vocabulary", type=name_path, action="append", default=[], metavar="NAME=PATH", help=again
    )
    return parser.parse_args(argv)


def run(args):
    if args.vocabulary:
        if sorted(name for name, _ in args.vocabulary) != sorted(FAMILIES):
            raise UserError(f"--vocabulary: give {', '.join(FAMILIES)}, each once")
        found = {name: load_vocabularies(name, path)[0] for name, path in args.vocabulary}
        facts = count_facts(read_prompts(args.folder / "prompts.py"), found)
        FACTS.write_text(json.dumps(facts) + "\n", encoding="utf-8")
    for name, text in build_tables(args.folder, read_facts()).items():
        print(f"{name}\n\n{text}\n")


if __name__ == "__main__":
    raise SystemExit(run_script(parse_args, run))
