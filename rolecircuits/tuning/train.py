"""Tune a model on short answers, by LoRA or whole, and stop at given doses.

    loss  mean cross-entropy of the answers' tokens, nats a token
    dose  optimizer steps of AdamW without weight decay, the gradient clipped to norm 1
    LoRA  W' = W + scale (alpha / r) B A, A drawn with the seed, B = 0 at the start
          (Hu et al. 2021, arXiv 2106.09685), by peft

    with Tuner(loaded, recipe, seed) as tuner:
        losses = tuner.train(batches)              # one step a batch
        tuner.save_state(path)                     # a killed study goes on from here
        with tuner.tuned(scale=1.0) as model: ...  # plain: the change merged into the weights

The same seed, batches, versions and threads give the same weights to the last bit, with or without
a stop between two doses.
"""

import contextlib
import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import peft
import torch
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from rolecircuits.capture.batches import pad_right
from rolecircuits.capture.model_pass import set_attention
from rolecircuits.capture.prefix import shared_prefix
from rolecircuits.inputs.errors import RunFailed, UserError, one_line, printable
from rolecircuits.runs.files import replaced_file

CLIP = 1.0
ADAPTER = "default"  # peft's name of the only adapter


@dataclass(frozen=True)
class Recipe:
    """How a model is tuned.

    tuning   "lora", or "full": all weights       lr      learning rate, constant
    targets  linear layers that get a LoRA        batch   examples a step
    rank, alpha  of the LoRA
    """

    tuning: str = "lora"
    lr: float = 5e-4
    batch: int = 8
    rank: int = 8
    alpha: int = 16
    targets: tuple = ("q_proj", "k_proj", "v_proj", "o_proj")


class Tuner:
    """A model being tuned. Its own weights are as they were once the block is left."""

    def __init__(self, loaded, recipe, seed):
        self.loaded, self.recipe, self.seed, self.step = loaded, recipe, seed, 0
        self.model, self.adapted = loaded.model, None

    def __enter__(self):
        torch.manual_seed(self.seed)
        if self.recipe.tuning == "lora":
            self.adapted = _add_lora(self.model, self.recipe, self.loaded.facts["id"])
            self.own = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
            touched = _lora_layers(self.model)
            self.untuned = {name: part.weight.detach().clone() for name, part in touched.items()}
        else:
            self.own = dict(self.model.named_parameters())
            for parameter in self.own.values():
                parameter.requires_grad_(True)
            self.untuned = {name: p.detach().clone() for name, p in self.own.items()}
        rate = self.recipe.lr
        self.optimizer = torch.optim.AdamW(self.own.values(), lr=rate, weight_decay=0.0)
        return self

    def __exit__(self, *error):
        self.optimizer.zero_grad(set_to_none=True)
        if self.adapted is not None:
            self.adapted.unload()
        else:
            _copy_into(self.own, self.untuned)
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)

    def train(self, batches):
        """One step a batch, a list of (token ids, tokens of the prompt); returns the losses."""
        set_attention(self.model, "sdpa" if self.model._supports_sdpa else "eager")
        losses = []
        for batch in batches:
            loss = answer_loss(self.model, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.own.values(), CLIP, error_if_nonfinite=True)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            losses.append(float(loss.detach()))
            self.step += 1
        return losses

    @contextlib.contextmanager
    def tuned(self, scale=1.0):
        """The plain model with `scale` times the change of its weights; afterwards as before.

        The weights are those that peft's merging gives, so a kept adapter is the same model.
        """
        kept = None
        try:
            if self.adapted is not None:
                self._set_scale(scale)
                self.adapted.merge_adapter(safe_merge=True)
            elif scale != 1:
                kept = {name: p.detach().clone() for name, p in self.own.items()}
                moved = {n: w + scale * (kept[n] - w) for n, w in self.untuned.items()}
                _copy_into(self.own, moved)
            yield self.model
        finally:
            if self.adapted is not None:
                self.adapted.unmerge_adapter()
                self._set_scale(1.0)
                own = {name: part.weight for name, part in _lora_layers(self.model).items()}
                _copy_into(own, self.untuned)  # to the last bit; unmerging alone rounds
            elif kept is not None:
                _copy_into(self.own, kept)

    def _set_scale(self, scale):
        for part in _adapted_parts(self.model).values():
            part.scaling[ADAPTER] = scale * self.recipe.alpha / self.recipe.rank

    def save_adapter(self, folder, scale=1.0):
        """The LoRA as an adapter folder that --model_id takes; its alpha holds the scale."""
        peft_config = self.adapted.peft_config[ADAPTER]
        alpha = peft_config.lora_alpha
        peft_config.lora_alpha = alpha * scale if scale != 1 else alpha
        try:
            self.adapted.save_pretrained(folder, save_embedding_layers=False)
        finally:
            peft_config.lora_alpha = alpha
        Path(folder, "README.md").unlink(missing_ok=True)  # an empty model card

    def weights_sha256(self):
        """Hash of all weights as they are now: inside `tuned`, of the merged model."""
        whole = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            if "lora_" in name:
                continue
            whole.update(name.encode())
            whole.update(tensor.detach().contiguous().cpu().view(torch.uint8).numpy())
        return whole.hexdigest()

    def save_state(self, path):
        """Weights that are tuned, and what the optimizer remembers of them, in one file."""
        tensors = {f"weight.{name}": p.detach() for name, p in self.own.items()}
        for name, parameter in self.own.items():
            for what, value in self.optimizer.state[parameter].items():
                tensors[f"{what}.{name}"] = torch.as_tensor(value)
        tensors = {name: t.cpu().contiguous().clone() for name, t in tensors.items()}
        with replaced_file(path, "wb") as file:
            file.write(save(tensors, metadata={"step": str(self.step)}))

    def load_state(self, path):
        """Go on from `save_state`: the next steps are those of a training that never stopped."""
        with _open_state(path) as file:
            self.step = _step_of(file)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        names = {name.partition(".")[2] for name in tensors}
        if names != set(self.own):
            raise UserError(f"{printable(path)}: of another model or recipe; remove its folder")
        _copy_into(self.own, {name: tensors[f"weight.{name}"] for name in names})
        for name, parameter in self.own.items():
            state = self.optimizer.state[parameter]
            for what in ("step", "exp_avg", "exp_avg_sq"):
                value = tensors[f"{what}.{name}"]
                state[what] = value if what == "step" else value.to(parameter.device)


def state_step(path):
    """The step at which `Tuner.save_state` was called."""
    with _open_state(path) as file:
        return _step_of(file)


@contextlib.contextmanager
def _open_state(path):
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise UserError(
            f"{printable(path)}: damaged ({one_line(error, 80)}); remove it, and this run is "
            "trained from its beginning to its next dose"
        ) from error


def _step_of(file):
    return int(file.metadata()["step"])


def answer_loss(model, batch):
    """Mean cross-entropy of the answers' tokens: a scalar with its graph.

    batch  [(token ids, how many of them are the prompt's)]
    Only rows that foretell an answer's token reach the output embedding, a fifth of all arithmetic.
    """
    token_ids = [ids for ids, _ in batch]
    device = next(model.parameters()).device
    ids, mask = (tensor.to(device) for tensor in pad_right(token_ids))
    n_prompt = torch.tensor([[n] for _, n in batch], device=device)
    query = torch.arange(ids.shape[1] - 1, device=device)
    answer = (query + 1 >= n_prompt) & (mask[:, 1:] == 1)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=_autocasts(model))
    with shared_prefix(model, token_ids), _rows_only(model, answer), autocast:
        logits = model(ids, attention_mask=mask, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][answer])
    if not torch.isfinite(loss):
        raise RunFailed(f"the training loss is {float(loss)}; try a smaller --lr")
    return loss


@contextlib.contextmanager
def _rows_only(model, chosen):
    """Inside the block the output embedding is given these rows alone: logits [row, vocabulary].

    chosen  [prompt, query - 1] bool; the last query foretells nothing that is there
    """
    head = model.get_output_embeddings()

    def choose(_, values):
        return (values[0][:, : chosen.shape[1]][chosen],)

    hook = head.register_forward_pre_hook(choose)
    try:
        yield
    finally:
        hook.remove()


def _autocasts(model):
    """bfloat16 for the arithmetic of float32 weights where that is faster: on CUDA.

    On a CPU without instructions for it a step took 25 times as long.
    """
    parameter = next(model.parameters())
    return parameter.is_cuda and parameter.dtype == torch.float32


def make_batches(n_examples, recipe, seed, first, last):
    """(epoch, positions of the examples) of each of the steps first .. last - 1.

    Every epoch is a permutation of its own, drawn from (seed, epoch); what is left over at its end
    is not taken.
    """
    a_epoch = max(1, n_examples // recipe.batch)
    for step in range(first, last):
        epoch, place = divmod(step, a_epoch)
        order = np.random.default_rng([seed, epoch]).permutation(n_examples)
        yield epoch, order[place * recipe.batch : (place + 1) * recipe.batch]


def check_recipe(model, recipe):
    """Refuse targets of a LoRA that the model has no linear layers for."""
    names = {
        name.rpartition(".")[2]
        for name, part in model.named_modules()
        if isinstance(part, torch.nn.Linear)
    }
    for target in recipe.targets if recipe.tuning == "lora" else ():
        if target not in names:
            raise UserError(
                f"--targets {printable(target)}: this model has no such linear layer; it has "
                f"{printable(', '.join(sorted(names)))}"
            )


def _add_lora(model, recipe, model_id):
    """peft's model around this one, in whose linear layers it puts the LoRA."""
    config = peft.LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        target_modules=list(recipe.targets),
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(model_id),
    )
    with warnings.catch_warnings():  # transformers' advice to peft's authors
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(model, config)
    adapted.peft_config[ADAPTER].base_model_name_or_path = str(model_id)
    return adapted


def _adapted_parts(model):
    """{name: module} of the layers that have a LoRA, as peft wraps them."""
    return {name: part for name, part in model.named_modules() if isinstance(part, LoraLayer)}


def _lora_layers(model):
    """{name: the linear layer itself} of the layers that have a LoRA."""
    return {name: part.base_layer for name, part in _adapted_parts(model).items()}


def _copy_into(parameters, values):
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])
