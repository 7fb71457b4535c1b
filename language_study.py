"""One model, all languages: is "you" special along the layers in each of them, do
the languages agree, and does their agreement follow typology?

    a run of every crossed set (crossed:en, crossed:de, ...), where this
    tokenizer matches 8 frames or more
    -> RFC (you against it), RSI (you against I), third (you against she or he)
       by layer, normalised; > 0: attention on you is the more focused
    -> Pearson's r of the profiles of two languages, with intervals over frames
    -> a permutation test over languages: do those that are alike in dropping
       pronouns, polite forms, gender, agreement and honorifics have like
       profiles? Ten languages are few, and relatives are not independent

    python language_study.py
    python language_study.py --model_id ./my-model --prompt_format chat
    python language_study.py --sets crossed:en crossed:es crossed:es-drop

-> language_results/: a folder of runs for each set, language_layers.csv,
   language_correlations.csv, language_typology.csv, languages.png
   (docs/COLUMNS.md). A run that is there as these flags would make it is not
   made again. "You" is the familiar one. What each set's words are:
   rolecircuits/inputs/languages/typology.json
"""

import sys
import time
from pathlib import Path

import activation_analysis
from output_manager import load_run
from prompts import load_prompts, open_tokenizer
from rolecircuits.drawing.table_files import add_table_argument, writes_tables
from rolecircuits.inputs.arguments import (
    DEFAULT_MODEL,
    LATEST_RUNS,
    add_format_arguments,
    add_model_choice,
    add_run_arguments,
    check_model_arguments,
    check_output_dir,
)
from rolecircuits.inputs.errors import UserError, printable
from rolecircuits.inputs.languages import LANGUAGES, PREFIX, language_sets, read_typology
from rolecircuits.inputs.parser import Parser, run_script
from rolecircuits.runs import files
from rolecircuits.runs.identity import why_again

DEFAULT_OUTPUT = "language_results"
LINK = LATEST_RUNS["instruct"]
OWN_FLAGS = ("sets", "output_dir", "table")  # of this script alone
ENGLISH_ONLY = (
    "the bundled model knows English only. What its other languages show is what words and "
    "tokens do that it does not understand: a baseline for a model that does, not a finding"
)
MIN_FRAMES = 8  # fewer have no interval (stats/resampling.py)


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    add_model_choice(parser)
    sets = parser.add_argument_group("prompts")
    usual = [f"{PREFIX}{code}" for code in LANGUAGES]
    sets.add_argument(
        "--sets",
        nargs="+",
        choices=language_sets(),
        metavar="SET",
        help=f"of {', '.join(language_sets())} (default: all languages, with their pronouns)",
    )
    add_format_arguments(sets)
    add_run_arguments(parser)
    output = parser.add_argument_group("output")
    where = f"for runs and results (default {DEFAULT_OUTPUT})"
    output.add_argument("--output_dir", default=DEFAULT_OUTPUT, help=where)
    add_table_argument(output)
    args = parser.parse_args(argv)
    args.sets = args.sets or usual
    return args


@writes_tables
def run(args):
    """Make the runs that are not there, and compare the languages; 3 if prompts failed."""
    folder, sets = check_output_dir(args.output_dir), list(dict.fromkeys(args.sets))
    stages = {source: stage_arguments(args, source, folder) for source in sets}
    for stage in stages.values():
        check_model_arguments(stage)
        check_output_dir(stage.output_dir, link=LINK)
    texts = {source: load_prompts(source, args.prompts_per_category)[0] for source in sets}
    skipped = find_skipped(args, texts)
    if len(skipped) == len(sets):
        raise UserError(f"no set has {MIN_FRAMES} matched frames: {next(iter(skipped.values()))}")
    for source, why in skipped.items():
        print(f"{source}: not measured, {why}")
    stages = {source: own for source, own in stages.items() if source not in skipped}
    failed = make_runs(stages, texts)
    runs = {source: load_run(Path(own.output_dir, LINK)) for source, own in stages.items()}
    compare_languages(runs, folder, args.seed, skipped)
    return 3 if failed else 0


def stage_arguments(args, source, folder):
    """The flags of activation_analysis.py for one set, parsed."""
    words = [f"--prompts={source}", f"--output_dir={Path(folder, source.replace(':', '_'))}"]
    for flag, value in vars(args).items():
        if flag in OWN_FLAGS or value is None or value is False:
            continue
        given = value if isinstance(value, list) else [value]
        words += [f"--{flag}" if own is True else f"--{flag}={own}" for own in given]
    return activation_analysis.parse_args(words)


def find_skipped(args, texts):
    """{set: why it is not measured} of those with too few frames that this tokenizer matches."""
    tokenize, frames = open_tokenizer(args)
    skipped = {}
    for source, prompts in texts.items():
        n, left_out = len({p.frame for p in prompts}), frames.find_left_out(tokenize(prompts))
        if n - len(left_out) < MIN_FRAMES:
            few = f"{n - len(left_out)} of {n} frames are matched under this tokenizer"
            skipped[source] = f"{few}; {MIN_FRAMES} are needed"
    return skipped


def make_runs(stages, texts):
    """Make the runs that are not there as these flags would make them; returns failed prompts."""
    loaded, timings, failed = None, {}, []
    for source, own in stages.items():
        link = Path(own.output_dir, LINK)
        if (why := why_again(link, own, texts[source])) is None:
            print(f"{source}: skipped, its run is there")
            continue
        print(f"{source}: made, {why}")
        if loaded is None:
            started = time.perf_counter()
            loaded = activation_analysis.load_for(texts[source], own)
            timings = {"load_s": time.perf_counter() - started}
        failed += activation_analysis.analyze_model(loaded, texts[source], own, timings)[1]
        timings = {}
    return failed


def compare_languages(runs, folder, seed, skipped):
    """Measure, correlate, test, draw and print the runs {set: Run}; written to `folder`."""
    from rolecircuits.drawing import language_figures, style  # matplotlib: not for --help
    from rolecircuits.stats import language_profiles as profiles_of  # scipy: not for --help

    profiles = [
        profiles_of.measure_profile(source, own, number, seed)
        for number, (source, own) in enumerate(runs.items())
    ]
    correlations = profiles_of.correlate_languages(profiles)
    typology = profiles_of.typology_rows(profiles, correlations, read_typology(), seed)
    first = profiles[0].facts
    whole = {"model": first["model"], "set": f"{PREFIX}*", "format": first["format"]}
    whole["run"] = " ".join(profile.facts["run"] for profile in profiles)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_csv(folder / "language_layers.csv", profiles_of.layer_rows(profiles))
    written = {"language_correlations": correlations, "language_typology": typology}
    for name, rows in written.items():
        if rows:
            facts = whole if name == "language_typology" else None
            files.write_csv(folder / f"{name}.csv", rows, facts=facts)
        else:
            (folder / f"{name}.csv").unlink(missing_ok=True)  # of an earlier choice of sets
    label = next(iter(runs.values())).label
    figure, _ = language_figures.draw_languages(profiles, correlations, label)
    style.save_figure(figure, folder / "languages.png")
    note = ENGLISH_ONLY if first["model"] == DEFAULT_MODEL else ""
    language_figures.print_languages(profiles, correlations, typology, skipped, note)
    print(f"written to {printable(folder)}")


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
