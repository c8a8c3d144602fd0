"""Low-rank adapters (LoRA, arXiv 2106.09685) through peft, and frozen policies that share the weights below them."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from vantage.core import above, at_least, component
from vantage.core.errors import UserError, require
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories


@component(label="lora")
class LoraSettings:
    """Which linear maps get an adapter B A * alpha / rank, and of which rank.

    Attributes:
        rank: of A and B, at least 1.
        alpha: scale, above 0.
        targets: names of the linear maps that get one; the output layer (`lm_head`) may be one, and is a weight of its own in a
            merged folder where it shared the embedding's.
    """

    rank: Annotated[int, at_least(1)] = 16
    alpha: Annotated[float, above(0)] = 32.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def adapt(model: Any, settings: LoraSettings) -> Any:
    """Put adapters into the model, which stays the same object, and leave them alone trainable; return peft's wrapper.

    The adapters start as nothing (B is 0).

    Raises:
        UserError: the model has no linear map of a name in `targets`.
    """
    peft = require("peft", "lora")
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    missing = [target for target in settings.targets if target not in names]
    if missing:
        raise UserError(
            f"lora: the model has no linear map {', '.join(missing)} (it has: {', '.join(sorted(names))}); set lora_targets"
        )
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=list(settings.targets),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # Output layer and embedding become two weights when adapters on the one are merged: `head_unties`.
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        return peft.get_peft_model(model, config)


def refuse_adapters(model: Any) -> None:
    """Check that a model has no adapters yet: of another's only some kinds would be evaluated, trained and saved.

    Raises:
        UserError: it has.
    """
    layers = any(hasattr(module, "base_layer") or hasattr(module, "modules_to_save") for module in model.modules())
    if layers or hasattr(model, "peft_config"):
        raise UserError(
            "the model holds adapters already: merge them first (peft's merge_and_unload), and let the policy make its own with"
            " lora=LoraSettings(...)"
        )


def adapter_layers(model: Any) -> list[Any]:
    """Return the modules that hold adapters."""
    tuners = require("peft.tuners.tuners_utils", "lora")
    return [module for module in model.modules() if isinstance(module, tuners.BaseTunerLayer)]


@contextlib.contextmanager
def switched_off(model: Any) -> Iterator[None]:
    """Leave the adapters out of every forward pass inside."""
    layers = [layer for layer in adapter_layers(model) if not layer.disable_adapters]
    trainable = [[p for p in layer.parameters() if p.requires_grad] for layer in layers]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer, parameters in zip(layers, trainable, strict=True):
            layer.enable_adapters(True)
            for parameter in parameters:
                parameter.requires_grad_(True)


def merged_weight(layer: Any) -> Tensor:
    """Return the weight [out, in] of a linear map with its adapters multiplied in; it carries their gradient."""
    weight: Tensor = layer.weight
    if not hasattr(layer, "base_layer") or layer.disable_adapters:
        return weight
    for adapter in layer.active_adapters:
        weight = weight + layer.get_delta_weight(adapter)
    return weight


def head_unties(model: Any) -> bool:
    """Whether adapters on the output layer part it from the embedding that it shares its weights with."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return hasattr(head, "base_layer") and head.weight is embedding.weight


def merged_state(model: Any) -> dict[str, Tensor]:
    """Return the weights of the model with its adapters multiplied in, under the names of the model without adapters.

    Where `head_unties`, a reader must not tie output layer and embedding again.
    """
    tuners = require("peft.tuners.tuners_utils", "lora")
    state = {name: value for name, value in model.state_dict().items() if ".lora_" not in name}
    plain = {name.replace(".base_layer.", "."): value for name, value in state.items()}
    for name, module in model.named_modules():
        if isinstance(module, tuners.BaseTunerLayer):
            plain[f"{name}.weight"] = merged_weight(module).detach()
    return plain


class FrozenAdapter(nn.Module):
    """A policy as it was when frozen, on the same weights: only its adapters are kept, and none where they were nothing.

    Its `state_dict` is the adapters. It gives no gradient, and must not be asked while a backward pass of the policy is
    under way in another thread, since it lends the policy its adapters for the time of the question.
    """

    memoryless = False

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.temperature = policy.temperature
        self.tokenizer = policy.tokenizer
        # Held in a tuple, the policy's parameters are not taken for this module's own.
        self._owner = (policy,)
        self._names = [name for name, _ in adapters(policy.model)]
        for place, (_, parameter) in enumerate(adapters(policy.model)):
            self.register_buffer(f"adapter{place}", parameter.detach().clone())

    def _kept(self) -> list[Tensor]:
        return [getattr(self, f"adapter{place}") for place in range(len(self._names))]

    @property
    def model(self) -> Any:
        """The model that is shared; inside, the adapters are the policy's present ones."""
        return self._owner[0].model

    @torch.no_grad()
    def evaluate(self, batch: Trajectories, want: frozenset[str]) -> Evaluation:
        """Judge the batch's decisions; no gradient."""
        policy = self._owner[0]
        own, policy.temperature = policy.temperature, self.temperature
        try:
            with self._lent():
                judged: Evaluation = policy.evaluate(batch, want)
                return judged
        finally:
            policy.temperature = own

    @contextlib.contextmanager
    def _lent(self) -> Iterator[None]:
        model = self._owner[0].model
        kept = self._kept()
        nothing = all(
            not bool(value.any()) for name, value in zip(self._names, kept, strict=True) if ".lora_B." in name
        )
        if nothing:
            with switched_off(model):
                yield
            return
        live = [parameter for _, parameter in adapters(model)]
        present = [parameter.data for parameter in live]
        for parameter, value in zip(live, kept, strict=True):
            parameter.data = value
        try:
            yield
        finally:
            for parameter, value in zip(live, present, strict=True):
                parameter.data = value

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The shared model's parameters: where it lives."""
        yield from self._owner[0].model.parameters()

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """None are its own."""
        return iter(())

    def frozen(self) -> FrozenAdapter:
        """It is frozen."""
        return self

    def save(self, folder: str | Path) -> None:
        """Write the whole model as it was when frozen."""
        with self._lent():
            self._owner[0].save(folder)


def adapters(model: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """Iterate over the adapters' parameters by name."""
    return ((name, parameter) for name, parameter in model.named_parameters() if ".lora_" in name)


def load_adapters(model: Any, state: Mapping[str, Tensor]) -> None:
    """Copy adapters in place."""
    with torch.no_grad():
        for name, parameter in adapters(model):
            parameter.copy_(state[name])
