"""List the run folders that are there, and remove old ones.

    python output_manager.py list
    python output_manager.py list results_activation_analysis/demo
    python output_manager.py prune --keep 2
    python output_manager.py prune --keep 2 results_activation_analysis --yes

list names every run, intervention, sweep, documents run and folder of answers
in a folder and those below it, newest last: its size, date, the latest_* link
that names it, its model, prompt set, format and number of prompts. What is
incomplete or damaged (files missing, or of another size than the run's
manifest.json says) is named as such.

prune keeps the newest N of each kind in each folder, whatever a link names,
and what a kept repetition repeats. It shows what it would remove; only --yes,
or a typed yes on a terminal, removes. Left alone are folders that are not
wholly ours: another name than run_20260101_120000, files or links that are not
in their manifest, damaged ones, and what is being written. Links out of the
folder are not followed.
"""

import sys

from rolecircuits.inputs.arguments import DEFAULT_RESULTS, keep_number
from rolecircuits.inputs.parser import Parser, run_script
from rolecircuits.runs import listing
from rolecircuits.runs.load import check_files, load_run, read_config, resolve_run
from rolecircuits.runs.publish import create_run, publish_files, say_limits, write_manifest

__all__ = [
    "check_files",
    "create_run",
    "load_run",
    "publish_files",
    "read_config",
    "resolve_run",
    "say_limits",
    "write_manifest",
]


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("command", choices=["list", "prune"], help="what to do")
    parser.add_argument(
        "folder",
        nargs="?",
        default=DEFAULT_RESULTS,
        help=f"folder of runs (default {DEFAULT_RESULTS})",
    )
    parser.add_argument(
        "--keep", type=keep_number, metavar="N", help="prune: newest of each kind that stay"
    )
    parser.add_argument("--yes", action="store_true", help="prune: remove without asking")
    args = parser.parse_args(argv)
    if args.command == "prune" and args.keep is None:
        parser.error("prune needs --keep N: how many of each kind stay in each folder")
    if args.command == "list" and (args.yes or args.keep is not None):
        parser.error("--keep and --yes are for prune; list removes nothing")
    return args


def run(args):
    found = listing.find_runs(args.folder)
    if args.command == "list":
        listing.print_runs(found)
        return
    kept, removed = listing.choose_removed(found, args.keep)
    listing.print_removed(kept, removed)
    if not removed:
        return
    if args.yes or listing.ask_yes():
        listing.remove_runs(removed)
    else:
        print("nothing was removed: --yes removes them")


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
