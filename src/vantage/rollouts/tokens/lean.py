"""Backend of Llama, Qwen2 and Qwen3 on the module's own parameters, without the module's forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vantage.rollouts.tokens.cache import Storage
from vantage.rollouts.tokens.native import native
from vantage.rollouts.tokens.prefill import prefill
from vantage.rollouts.tokens.shared import Block
from vantage.rollouts.tokens.turns import extend, forget
from vantage.rollouts.tokens.weights import Weights

_ARCHITECTURES = {
    "LlamaForCausalLM": "transformers.models.llama.",
    "Qwen2ForCausalLM": "transformers.models.qwen2.",
    "Qwen3ForCausalLM": "transformers.models.qwen3.",
}


def unwrapped(model: Any) -> Any:
    """Return the transformers module inside a LoRA wrapper (peft), a compiled or data-parallel module, or the model itself."""
    if type(model).__name__ in ("OptimizedModule", "DistributedDataParallel"):
        return unwrapped(getattr(model, "_orig_mod", None) or model.module)
    adapters = getattr(model, "peft_config", None)
    if adapters and hasattr(model, "get_base_model"):
        kinds = [str(getattr(adapter, "peft_type", "")) for adapter in adapters.values()]
        return model.get_base_model() if all(kind.endswith("LORA") for kind in kinds) else model
    return model


def unsupported(model: Any) -> str | None:
    """Return the reason why the lean path cannot run this model, or None where it can."""
    model = unwrapped(model)
    kind = type(model)
    if not kind.__module__.startswith(_ARCHITECTURES.get(kind.__name__, " ")):
        return f"the architecture {kind.__name__} is not one of {', '.join(_ARCHITECTURES)}"
    rope = getattr(model.model.rotary_emb, "rope_type", "default")
    if "dynamic" in rope or rope == "longrope":
        return f"rotary embeddings of type {rope!r} change with the length"
    if any(getattr(layer.self_attn, "sliding_window", None) is not None for layer in model.model.layers):
        return "a layer attends through a sliding window"
    if len(model.model.layers) != model.config.num_hidden_layers:
        return "the number of layers is not the configuration's"
    if len({parameter.device for parameter in model.parameters()}) != 1:
        return "its parameters are on several devices"
    if len({m.weight.dtype for m in model.modules() if type(m) in (nn.Linear, nn.Embedding)}) != 1:
        return "its parameters are of several types"
    if any(_changed(module) for module in model.modules()):
        return "one of its modules has a hook"
    return None


def _changed(module: Any) -> bool:
    """Return whether a module's forward has hooks or is replaced, except by transformers' own recording of outputs."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    own = "transformers.utils.output_capturing"
    return "forward" in module.__dict__ or any(getattr(hook, "__module__", "") != own for hook in hooks)


def weights_of(model: Any, layer: type | None = None) -> Weights:
    """Read a model's present parameters, with the compiled path where there is one; `layer` as in `Weights`."""
    found = Weights(model, layer)
    found.native = native(found)
    return found


def sharing_pays(
    lengths: Sequence[int], counts: Sequence[int], width: int, device: torch.device, native: bool = False
) -> bool:
    """Return whether groups should read a shared prompt instead of a copy per row; `width` is Hkv x d.

    Sharing saves reading (and storing) the copies and costs a dozen small operations per layer, none on the `native` path.
    The thresholds are where the two took the same time, in elements of keys that a step does not read again.
    """
    copies = max(lengths, default=0) * sum(counts) - sum(lengths)
    if native:
        return copies > 0
    return copies * width > (150_000 if device.type == "cpu" else 8_000_000)


class LeanCache(Storage):
    """Cache of the lean backend: prompts are computed once, tokens can be inserted and removed. (`backend.Cache`)"""

    @classmethod
    def open(cls, weights: Weights, prompts: Sequence[Sequence[int]], counts: Sequence[int], room: int) -> LeanCache:
        """Compute each prompt once; `counts` rows of each, adjacent."""
        group = torch.arange(len(prompts)).repeat_interleave(torch.tensor(list(counts), dtype=torch.int64))
        length = torch.tensor([len(prompt) for prompt in prompts], dtype=torch.int64)
        cache = cls(weights, length[group], room)
        parts = prefill(weights, prompts, 4096 if weights.device.type == "cpu" else 32768)
        width, native = weights.kv_heads * weights.dim, weights.native is not None
        if sharing_pays(length.tolist(), counts, width, weights.device, native):
            where = torch.zeros(len(prompts), 2, dtype=torch.int64)
            for number, (members, kv) in enumerate(parts):
                cache.blocks.append(Block.of(kv, [len(prompts[index]) for index in members]))
                where[members, 0], where[members, 1] = number, torch.arange(len(members))
            cache.member = where[group]
            return cache
        width = int(length.max()) if len(length) else 0
        cache.reserve(width + 1)
        cache.end = width
        cache.filled, cache.start = length[group], width - length[group]
        for members, kv in parts:
            rows = torch.isin(group, torch.tensor(members)).nonzero().squeeze(1)
            source = torch.empty(len(prompts), dtype=torch.int64)
            source[members] = torch.arange(len(members))
            to, source = rows.to(weights.device), source[group[rows]].to(weights.device)
            first = width - kv[0].shape[3]
            for mine, other in zip(cache.kv, kv):
                mine[:, :, :, :width].index_copy_(1, to, F.pad(other, (0, 0, first, 0)).index_select(1, source))
        cache._mask()
        return cache

    def extend(self, tokens: Sequence[Sequence[int]]) -> None:
        """Feed these tokens to each row; a row may get none."""
        extend(self, tokens)

    def forget(self, counts: Tensor) -> None:
        """Remove the last tokens of each row, [n] of them (host)."""
        forget(self, counts)


class LeanBackend:
    """Backend whose caches run Llama, Qwen2 and Qwen3 on the module's own parameters."""

    name = "lean"

    def __init__(self, model: Any) -> None:
        self.model = unwrapped(model)
        self.device = self.model.model.embed_tokens.weight.device

    def weights(self) -> Weights:
        """Read the present parameters."""
        return weights_of(self.model)

    def open(self, weights: Weights, prefixes: Sequence[Sequence[int]], counts: Sequence[int], room: int) -> LeanCache:
        """Cache all but the last token of each prefix, once, for `counts` rows each that may get `room` tokens."""
        return LeanCache.open(weights, [prefix[:-1] for prefix in prefixes], counts, room)
