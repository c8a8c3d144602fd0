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
    """Settings of adapters B A * alpha / rank on linear maps.

    Attributes:
        rank: rank of A and B, at least 1.
        alpha: scale, above 0.
        targets: names of the linear maps with adapters; the output layer (`lm_head`) may be one, and a merged folder then holds
            it as a weight of its own where it was tied to the embedding.
    """

    rank: Annotated[int, at_least(1)] = 16
    alpha: Annotated[float, above(0)] = 32.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def adapt(model: Any, settings: LoraSettings) -> Any:
    """Add adapters to the model, in place, as its only trainable parameters, and return peft's wrapper.

    The adapters initially have no effect (B is 0).

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
        # Output layer and embedding become two weights when adapters of one are merged: `head_unties`.
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        return peft.get_peft_model(model, config)


def refuse_adapters(model: Any) -> None:
    """Refuse a model that has adapters already: only some kinds of them could be evaluated, trained and saved.

    Raises:
        UserError: the model has adapters.
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
    """Disable the adapters in every forward pass within the context."""
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
    """Return the weight [out, in] of a linear map with its adapters merged; it carries their gradient."""
    weight: Tensor = layer.weight
    if not hasattr(layer, "base_layer") or layer.disable_adapters:
        return weight
    for adapter in layer.active_adapters:
        weight = weight + layer.get_delta_weight(adapter)
    return weight


def head_unties(model: Any) -> bool:
    """Return whether adapters on the output layer make it differ from the embedding to which it was tied."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return hasattr(head, "base_layer") and head.weight is embedding.weight


def merged_state(model: Any) -> dict[str, Tensor]:
    """Return the weights of the model with its adapters merged, under the names of the model without adapters.

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
    """Frozen copy of a policy with adapters that shares its weights: only the adapters are copied, and none where they were 0.

    Its `state_dict` is the adapters. It gives no gradient, and must not be evaluated while a backward pass of the policy
    runs in another thread, since its adapters replace the policy's during the evaluation.
    """

    memoryless = False

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.temperature = policy.temperature
        self.tokenizer = policy.tokenizer
        # Held in a tuple, the policy is not registered as a submodule.
        self._owner = (policy,)
        self._names = [name for name, _ in adapters(policy.model)]
        for place, (_, parameter) in enumerate(adapters(policy.model)):
            self.register_buffer(f"adapter{place}", parameter.detach().clone())

    def _kept(self) -> list[Tensor]:
        return [getattr(self, f"adapter{place}") for place in range(len(self._names))]

    @property
    def model(self) -> Any:
        """Shared model, with the policy's present adapters."""
        return self._owner[0].model

    @torch.no_grad()
    def evaluate(self, batch: Trajectories, want: frozenset[str]) -> Evaluation:
        """Evaluate the batch's decisions; no gradient."""
        policy = self._owner[0]
        own, policy.temperature = policy.temperature, self.temperature
        try:
            with self._lent():
                evaluation: Evaluation = policy.evaluate(batch, want)
                return evaluation
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
        """Return the shared model's parameters, which give the device."""
        yield from self._owner[0].model.parameters()

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Return no parameters: none are its own."""
        return iter(())

    def frozen(self) -> FrozenAdapter:
        """Return itself."""
        return self

    def save(self, folder: str | Path) -> None:
        """Write the whole model with the frozen adapters."""
        with self._lent():
            self._owner[0].save(folder)


def adapters(model: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """Iterate over the adapters' parameters by name."""
    return ((name, parameter) for name, parameter in model.named_parameters() if ".lora_" in name)


def load_adapters(model: Any, state: Mapping[str, Tensor]) -> None:
    """Copy adapters into the model, in place."""
    with torch.no_grad():
        for name, parameter in adapters(model):
            parameter.copy_(state[name])
