"""Run the prompts of this folder through the bundled model and save the value of every head.

    values      [prompt, layer, head] float32: mean over the prompt's own rows of row entropy
                divided by ln(visible keys), in [0, 1] (stats.indices.prompt_values, normalised)
    category, frame, filler, pair_id, first_word, text    [prompt], as the run has them

One file <set>_<format>.npz for every set (the *.csv beside this script, and `crossed`) and prompt
format (raw, chat). Own sets have no frame: theirs is the first word. The weights are float32, and
the same machine writes the same bytes again; another one may differ in the last digits.

    python benchmarks/data/make_data.py                      all of them, about 8 minutes
    python benchmarks/data/make_data.py --only prompts       both formats of one set
    python benchmarks/data/make_data.py --output_dir other   elsewhere, to compare
"""

import subprocess
import sys
import tempfile
from pathlib import Path

DATA = Path(__file__).resolve().parent
PROJECT = DATA.parent.parent
sys.path.insert(0, str(PROJECT))

from rolecircuits.inputs.errors import RunFailed, UserError, printable  # noqa: E402
from rolecircuits.inputs.parser import Parser, run_script  # noqa: E402

FORMATS = ("raw", "chat")
SETS = {"crossed": "crossed"} | {path.stem: str(path) for path in sorted(DATA.glob("*.csv"))}
MODEL = "bundled:smollm2-135m-instruct"


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    names = list(SETS)
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="SET", help="which sets"
    )
    parser.add_argument("--output_dir", type=Path, default=DATA, help="where the npz files go")
    return parser.parse_args(argv)


def run(args):
    if not args.output_dir.is_dir():
        raise UserError(f"--output_dir {args.output_dir}: no such folder")
    from output_manager import load_run  # numpy: after the arguments are checked
    from rolecircuits.runs.npz import write_npz
    from rolecircuits.stats.audit import audit_design

    for name in args.only:
        for form in FORMATS:
            with tempfile.TemporaryDirectory() as folder:
                measure(SETS[name], form, folder)
                loaded = load_run(Path(folder) / "latest_run")
            path = args.output_dir / f"{name}_{form}.npz"
            write_npz(path, describe(loaded))
            n, size = len(loaded.category), path.stat().st_size
            verdict = audit_design(loaded)["verdict"]
            print(f"{printable(path)}: {n} prompts, {size} bytes; {verdict}", flush=True)


def measure(prompts, form, folder):
    """One run of activation_analysis.py in `folder`."""
    call = [sys.executable, PROJECT / "activation_analysis.py", "--model_id", MODEL]
    call += ["--prompts", prompts, "--prompt_format", form, "--output_dir", folder, "--raw", "none"]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode:
        what = f"--prompts {prompts} --prompt_format {form}"
        raise RunFailed(f"{what}: exit {done.returncode}: {done.stderr.strip()[-300:]}")


def describe(loaded):
    """The arrays of a file, from a run."""
    import numpy as np

    from rolecircuits.stats.indices import first_words, prompt_values

    labels = {name: getattr(loaded, name) for name in ("category", "frame", "filler", "pair_id")}
    values = prompt_values(loaded).astype(np.float32)
    labels |= {"first_word": first_words(loaded)}
    return {"values": values, **labels, "text": np.array([row["text"] for row in loaded.prompts])}


def main(argv=None):
    return run_script(parse_args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
