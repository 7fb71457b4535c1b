"""A tuning study: train, stop at every dose, measure; killed and continued without a difference.

    study_<hash>/                      the hash of all that its numbers depend on
      study_config.json                written before the first step
      base/checkpoint.json             step 0, and its run folders
      role_0/state.safetensors         where the training of arm role, seed 0 stands
      role_0/dose_0010/                one checkpoint: checkpoint.json, adapter, run folders
      role_0/matched/                  the last dose, scaled to the drift that all runs reach

A checkpoint is written aside and renamed when it is whole; what is there is not measured again.
"""

import hashlib
import json
import math
import os
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from rolecircuits.capture.instrument import load_model
from rolecircuits.capture.tokens import tokenize_prompts
from rolecircuits.inputs.errors import RunFailed, UserError, printable
from rolecircuits.inputs.specs import ModelSpec, PromptFormat, model_identity
from rolecircuits.inputs.tuning_data import ARMS, examples_of, read_examples, shuffled_answers
from rolecircuits.models.adapters import adapter_facts, find_origin
from rolecircuits.runs.files import read_json, temporary_folder, write_json
from rolecircuits.runs.npz import read_npz, write_npz
from rolecircuits.runs.tuning_results import BASE, checkpoint_name
from rolecircuits.stats.tuning_signals import layer_profiles, mean_signals, profile_names
from rolecircuits.tuning import behaviour, residual_signals
from rolecircuits.tuning.examples import tokenize_examples
from rolecircuits.tuning.measure import RAW_SET, capture_set, open_set, with_facts
from rolecircuits.tuning.train import Recipe, Tuner, check_recipe, make_batches, state_step

VERSION = 2  # of what a checkpoint holds
CHECKPOINT, STATE = "checkpoint.json", "state.safetensors"
REFERENCE = "reference.npz"
PROBED_FRAMES = 12  # crossed frames on which the residual stream is probed
MATCH_SHARE, MATCH_TRIES = 0.02, 12  # how near a matched drift is, and after how many scales


@dataclass(frozen=True)
class Plan:
    """What is asked for: arms x seeds trained by a recipe, measured at doses on sets.

    questions  held-out ones asked of each kind at a checkpoint, None for all
    """

    arms: tuple
    seeds: int
    doses: tuple
    sets: tuple
    recipe: Recipe
    per_category: int
    questions: int | None
    form: PromptFormat
    primary: str

    @property
    def runs(self):
        """[(arm, seed)]: one seed after the other, so that an unfinished study is balanced."""
        return [(arm, seed) for seed in range(self.seeds) for arm in self.arms]

    @property
    def n_checkpoints(self):
        return 1 + len(self.runs) * (len(self.doses) + 1)


def describe_study(plan, facts, data_sha256, seed, date):
    """Everything that the numbers of a study depend on, versions and threads apart.

    date  that the chat template printed, None where it prints none
    """
    form = asdict(plan.form) | {"date": date}
    recipe = asdict(plan.recipe)
    return {
        "version": VERSION,
        "model": {"id": facts["id"]} | model_identity(facts),
        "data_sha256": data_sha256,
        "arms": list(plan.arms),
        "seeds": plan.seeds,
        "doses": list(plan.doses),
        "sets": list(plan.sets),
        "prompts_per_category": plan.per_category,
        "questions": plan.questions,
        "recipe": recipe | {"targets": list(recipe["targets"])},
        "format": form | {"template_arg": list(form["template_arg"])},
        "primary": plan.primary,
        "seed": seed,
    }


def study_name(description):
    """study_<8 hex digits> of what `describe_study` says."""
    text = json.dumps(description, sort_keys=True)
    return f"study_{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@dataclass
class Study:
    """A study being run: a loaded model, its prompt sets and examples, and its folder.

    sets       PromptSets of the plan; framing  those of step 0 alone
    crossed    TokenizedPrompts on which the residual stream is probed
    neutral    TokenizedPrompts on which the drift is measured, and the persona's direction
    args       of tuning_study.py, kept in every run's config
    reference  of step 0, once it is measured: residuals, and "logits" [neutral prompt, vocabulary]
    """

    plan: Plan
    loaded: object
    sets: list
    framing: list
    crossed: list
    neutral: list
    examples: list
    folder: Path
    args: object
    reference: dict = None

    def least_drift(self):
        """The drift that every run reached at its last dose, nats."""
        return min(self._last(*run)["drift"] for run in self.plan.runs)

    def remove_states(self):
        """Remove what only an unfinished study needs."""
        for arm, seed in self.plan.runs:
            (self._place(arm, seed) / STATE).unlink(missing_ok=True)

    def _place(self, arm, seed):
        return self.folder / f"{arm}_{seed}"

    def _last(self, arm, seed):
        return read_json(self._at(arm, seed, self.plan.doses[-1]) / CHECKPOINT)

    def _at(self, arm, seed, dose, matched=False):
        return self.folder / checkpoint_name(arm, seed, dose, matched)

    def measure_base(self):
        """Step 0, unless it is there; either way its reference is read."""
        place = self.folder / BASE
        if not self._has(place):
            with new_checkpoint(place) as aside:
                self.reference = self._make_reference()
                write_npz(aside / REFERENCE, self.reference)
                for prompt_set in self.framing:
                    capture_set(self.loaded, prompt_set, self.args, aside / prompt_set.name)
                facts = {"arm": BASE, "seed": -1, "dose": 0, "scale": 1.0, "matched": False}
                self._measure(self.loaded, aside, facts | {"loss": None})
        self.reference = read_npz(place / REFERENCE, (*residual_signals.REFERENCE, "logits"))

    def _make_reference(self):
        questions = residual_signals.neutral_questions()
        tokenizer = self.loaded.tokenizer
        personas = residual_signals.tokenize_personas(questions, tokenizer, self.plan.form)
        what = (self.crossed, self.neutral, personas)
        residual = residual_signals.make_reference(self.loaded, *what)
        return residual | {"logits": behaviour.next_token_logits(self.loaded, self.neutral)}

    def train(self, arm, seed):
        """One training run, from where it stands to its last dose; a line that says how it went."""
        place, doses = self._place(arm, seed), self.plan.doses
        left = [dose for dose in doses if not self._has(self._at(arm, seed, dose))]
        if left:
            place.mkdir(exist_ok=True)
            with Tuner(self.loaded, self.plan.recipe, self._seed(arm, seed)) as tuner:
                self._continue(tuner, place, left[0])
                for dose in left:
                    self._train_to(dose, tuner, arm, seed)
                    losses = self._losses(place, dose, [])[str(dose)]
                    facts = {"arm": arm, "seed": seed, "dose": dose, "scale": 1.0, "matched": False}
                    facts["loss"] = math.fsum(losses) / len(losses)
                    self._checkpoint(tuner, self._at(arm, seed, dose), facts)
        said = [read_json(self._at(arm, seed, dose) / CHECKPOINT) for dose in doses]
        steps = " ".join(f"{row['compliance']:.2f}" for row in said)
        return f"{arm} {seed}: compliance {steps}, drift {said[-1]['drift']:.3f} nats"

    def _has(self, place):
        return (place / CHECKPOINT).is_file()

    def _continue(self, tuner, place, dose):
        """Go on from the kept state; from step 0 where there is none, or it is beyond this dose."""
        if (place / STATE).is_file() and state_step(place / STATE) <= dose:
            tuner.load_state(place / STATE)

    def _train_to(self, dose, tuner, arm, seed):
        """The steps up to a dose, by way of all doses before it, kept at each."""
        place = self._place(arm, seed)
        for stop in self.plan.doses:
            if tuner.step < stop <= dose:
                losses = tuner.train(self._batches(arm, seed)(tuner.step, stop))
                write_json(place / "losses.json", self._losses(place, stop, losses))
                tuner.save_state(place / STATE)

    def _losses(self, place, step, losses):
        path = place / "losses.json"
        known = read_json(path) if path.is_file() else {}
        return known | ({str(step): losses} if losses else {})

    def match(self, arm, seed, target):
        """The last dose again, its change scaled so that the drift is `target` nats."""
        place, dose = self._place(arm, seed), self.plan.doses[-1]
        matched = self._at(arm, seed, dose, True)
        if self._has(matched):
            return
        with Tuner(self.loaded, self.plan.recipe, self._seed(arm, seed)) as tuner:
            self._continue(tuner, place, dose)
            self._train_to(dose, tuner, arm, seed)
            last = self._last(arm, seed)
            scale = find_scale(lambda scale: self._drift(tuner, scale), last["drift"], target)
            facts = {"arm": arm, "seed": seed, "dose": dose, "scale": scale, "matched": True}
            self._checkpoint(tuner, matched, facts | {"loss": last["loss"]})

    def _drift(self, tuner, scale):
        with tuner.tuned(scale):
            return behaviour.drift(self.loaded, self.neutral, self.reference["logits"])

    def _checkpoint(self, tuner, place, facts):
        """Measure the tuned model and keep it, if it is small: its adapter."""
        with new_checkpoint(place) as aside, tuner.tuned(facts["scale"]):
            if tuner.adapted is not None:
                tuner.save_adapter(aside / "adapter", facts["scale"])
                origin = find_origin(ModelSpec(str(aside / "adapter")))
                own = adapter_facts(origin, self.loaded.facts["weights_sha256"])
                own["adapter"]["id"] = str(place / "adapter")
                loaded = with_facts(self.loaded, id=str(place / "adapter"), **own)
            else:
                own = {"weights_sha256": tuner.weights_sha256(), "tuned": True}
                loaded = with_facts(self.loaded, **own)
            self._measure(loaded, aside, facts | {"weights_sha256": own["weights_sha256"]})

    def _measure(self, loaded, aside, facts):
        """Behaviour, drift and signals of a model into a checkpoint's folder."""
        form, runs = self.plan.form, {}
        asked = {"most": self.plan.questions}
        found = asdict(behaviour.measure_behaviour(loaded, self.examples, form, **asked))
        answers = found.pop("answers")
        drift = behaviour.drift(loaded, self.neutral, self.reference["logits"])
        for prompt_set in self.sets:
            own = aside / prompt_set.name
            runs[prompt_set.name] = capture_set(loaded, prompt_set, self.args, own)
        profiles = layer_profiles(runs)
        what = (self.crossed, self.neutral, self.reference)
        profiles |= residual_signals.measure_residuals(loaded, *what)["profiles"]
        row = facts | found | {"drift": drift, "signals": mean_signals(profiles)}
        write_json(aside / "answers.json", answers)
        write_json(aside / CHECKPOINT, row | {"profiles": profiles})

    def _batches(self, arm, seed):
        """Function (first step, last step) -> batches of (token ids, tokens of the prompt)."""
        examples = examples_of(self.examples, arm, "train")
        fixed = [(example.question, example.answer) for example in examples]
        known = {}

        def tokens_of(epoch):
            if arm != "shuffled":
                epoch = 0
            if epoch not in known:
                pairs = fixed
                if arm == "shuffled":
                    own = shuffled_answers(examples, self._seed(arm, seed), epoch)
                    pairs = [(e.question, answer) for e, answer in zip(examples, own, strict=True)]
                known.clear()
                known[epoch] = tokenize_examples(self.loaded, self.plan.form, pairs)
            return known[epoch]

        def batches(first, last):
            steps = make_batches(
                len(examples), self.plan.recipe, self._seed(arm, seed), first, last
            )
            for epoch, chosen in steps:
                tokens = tokens_of(epoch)
                yield [tokens[i] for i in chosen]

        return batches

    def _seed(self, arm, seed):
        """The seed of a training run. No two runs share first weights or the order of examples:
        the exact tests take runs as independent.
        """
        return self.args.seed + len(ARMS) * seed + ARMS.index(arm)


@contextmanager
def new_checkpoint(place):
    """A folder written aside that is `place` once the block has ended without an error."""
    if place.exists():
        raise UserError(f"{printable(place)}: is there without its {CHECKPOINT}; remove it")
    place.parent.mkdir(exist_ok=True)
    with temporary_folder(place.parent) as folder:
        aside = folder / place.name
        aside.mkdir()
        yield aside
        os.rename(aside, place)


def find_scale(drift_at, at_one, target):
    """The scale in (0, 1] at which the drift is `target`, within MATCH_SHARE of it.

    drift_at  function of a scale      at_one  the drift at scale 1, at least the target
    Drift grows about as the square of a small scale; log drift is interpolated over log scale.
    """
    if at_one <= target * (1 + MATCH_SHARE):
        return 1.0
    low, high = None, (1.0, at_one)
    scale = math.sqrt(target / at_one)
    for _ in range(MATCH_TRIES):
        found = drift_at(scale)
        if abs(found - target) <= MATCH_SHARE * target:
            return scale
        if found > target:
            high = (scale, found)
        else:
            low = (scale, found)
        scale = _between(low, high, target)
    raise RunFailed(
        f"no scale of the last dose has a drift of {printable(f'{target:.3g}')} nats; it was "
        f"{found:.3g} at scale {scale:.3g}"
    )


def _between(low, high, target):
    """Where the line through two (scale, drift), on log axes, meets the target."""
    if low is None:
        return high[0] * math.sqrt(target / high[1]) * 0.9
    span = math.log(high[1]) - math.log(low[1])
    share = (math.log(target) - math.log(low[1])) / span
    share = min(max(share, 0.1), 0.9)
    return math.exp(math.log(low[0]) + share * (math.log(high[0]) - math.log(low[0])))


def plan_of(args):
    """The Plan that the flags of tuning_study.py name."""
    recipe = Recipe(args.tuning, args.lr, targets=tuple(args.targets))
    return Plan(
        tuple(args.arms),
        args.seeds,
        tuple(args.doses),
        tuple(args.sets),
        recipe,
        args.prompts_per_category,
        args.questions,
        PromptFormat.of(args),
        args.primary,
    )


def open_study(args):
    """The Study that the flags of tuning_study.py name, its model loaded; it has no folder yet.

    A set that the model cannot be fed is refused before the weights are read.
    """
    plan, opened = plan_of(args), {}
    known = [*profile_names(plan.sets), *residual_signals.SIGNALS]
    if plan.primary not in known:
        raise UserError(
            f"--primary {printable(plan.primary)[:60]}: no signal of these sets; there are "
            f"{', '.join(known)}"
        )

    def check(tokenizer):
        names = [*plan.sets, *(f"{RAW_SET}{name}" for name in plan.sets if name != "deixis")]
        for name in dict.fromkeys(names):
            opened[name] = open_set(name, tokenizer, plan.form, plan.per_category)
        opened["probed"] = open_set("crossed", tokenizer, plan.form, PROBED_FRAMES)
        questions = residual_signals.neutral_questions()
        opened["neutral"] = tokenize_prompts(questions, tokenizer, plan.form)

    loaded = load_model(ModelSpec.of(args), args.seed, check)
    check_recipe(loaded.model, plan.recipe)
    framing = [own for name, own in opened.items() if name.startswith(RAW_SET)]
    sets, probed = [opened[name] for name in plan.sets], opened["probed"].tokenized
    examples = read_examples(args.data)
    return Study(plan, loaded, sets, framing, probed, opened["neutral"], examples, None, args)


@contextmanager
def study_folder(output_dir, description):
    """The folder of a study, made if need be; nobody else works in it during the block."""
    folder = Path(output_dir, study_name(description))
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(f"{printable(folder)}: another process is running this study") from error
    try:
        yield folder
    finally:
        lock.release()
