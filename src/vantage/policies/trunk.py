"""Forward pass of Llama, Qwen2 and Qwen3 on packed tokens, with the module's own submodules and parameters."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from vantage.policies.attention import Plan, attend
from vantage.policies.logprob import compiled

ARCHITECTURES = {
    "LlamaForCausalLM": "transformers.models.llama",
    "Qwen2ForCausalLM": "transformers.models.qwen2",
    "Qwen3ForCausalLM": "transformers.models.qwen3",
}


def supported(model: Any) -> bool:
    """Return whether `hidden_states` is equivalent to the model's own forward."""
    kind = type(model)
    if not kind.__module__.startswith(ARCHITECTURES.get(kind.__name__, " ")):
        return False
    rope = getattr(model.model.rotary_emb, "rope_type", "default")
    if "dynamic" in rope or rope == "longrope":
        return False  # the frequencies change with the longest sequence
    if any(getattr(layer.self_attn, "sliding_window", None) is not None for layer in model.model.layers):
        return False
    return not any(_changed(module) for module in model.modules())


def _changed(module: Any) -> bool:
    """Return whether the module's forward has hooks or is replaced, except by transformers' own recording of outputs."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    own = "transformers.utils.output_capturing"
    return "forward" in module.__dict__ or any(getattr(hook, "__module__", "") != own for hook in hooks)


def hidden_states(
    model: Any,
    tokens: Tensor,
    positions: Tensor,
    plan: Plan,
    needed: Tensor | None,
    *,
    recompute: bool = False,
    fused: bool = False,
) -> Tensor:
    """Return the last hidden states, normalised as the output layer reads them, [len(needed), D].

    Args:
        model: a causal language model that is `supported`.
        tokens: [S] packed tokens.
        positions: [S] position of each in its own sequence.
        plan: attention structure.
        needed: positions in the list whose states are returned; all where None. The last layer's feed-forward part is
            computed for these alone.
        recompute: keep each layer's input only and recompute the rest in the backward pass.
        fused: fuse rotations and gates by torch.compile.
    """
    body = model.model
    x = body.embed_tokens(tokens)
    cos, sin = body.rotary_emb(x, positions.unsqueeze(0))
    half = cos.shape[-1] // 2
    rotation = (cos[0, :, None, :half].contiguous(), sin[0, :, None, :half].contiguous())
    last = len(body.layers) - 1
    for number, layer in enumerate(body.layers):
        chosen = needed if number == last else None
        if recompute and torch.is_grad_enabled():
            x = cast(Tensor, checkpoint(_layer, layer, x, rotation, plan, chosen, fused, use_reentrant=False))
        else:
            x = _layer(layer, x, rotation, plan, chosen, fused)
    return _norm(body.norm, x)


def _layer(
    layer: Any, x: Tensor, rotation: tuple[Tensor, Tensor], plan: Plan, chosen: Tensor | None, fused: bool
) -> Tensor:
    attention, mlp = layer.self_attn, layer.mlp
    y = _norm(layer.input_layernorm, x)
    size = (y.shape[0], -1, attention.head_dim)
    query, key, value = (project(y).view(size) for project in (attention.q_proj, attention.k_proj, attention.v_proj))
    if hasattr(attention, "q_norm"):
        query, key = _norm(attention.q_norm, query), _norm(attention.k_norm, key)
    query, key = rotate(query, *rotation, fused), rotate(key, *rotation, fused)
    seen = attend(query, key, value, plan, attention.scaling).flatten(1)
    if chosen is not None:
        x, seen = x.index_select(0, chosen), seen.index_select(0, chosen)
    x = x + attention.o_proj(seen)
    y = _norm(layer.post_attention_layernorm, x)
    return x + mlp.down_proj(_gated(mlp, y, fused))


def _norm(module: Any, x: Tensor) -> Tensor:
    weight = module.weight
    if x.is_cuda:
        return F.rms_norm(x, (x.shape[-1],), weight.to(x.dtype), module.variance_epsilon)
    return cast(Tensor, _RMSNorm.apply(x, weight, module.variance_epsilon))


class _RMSNorm(torch.autograd.Function):
    """Autograd function of x / sqrt(mean(x^2) + eps) * weight, which saves x and one number per row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        scale = torch.rsqrt(torch.linalg.vecdot(wide, wide).div_(x.shape[-1]).add_(eps)).unsqueeze(-1)
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).mul_(weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        wide = x if x.dtype == torch.float64 else x.float()
        unit = wide * scale
        grad = grad.to(wide.dtype)
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = torch.linalg.vecdot(grad.flatten(0, -2), unit.flatten(0, -2), dim=0).to(weight.dtype)
        inner = grad * weight
        drift = torch.linalg.vecdot(inner, unit).div_(x.shape[-1]).unsqueeze(-1)
        return inner.addcmul_(unit, drift, value=-1).mul_(scale).to(x.dtype), grad_weight, None


def rotate(x: Tensor, cos: Tensor, sin: Tensor, fused: bool = False) -> Tensor:
    """Rotate the pairs (x_i, x_{i + d/2}) of [S, H, d] by the angles of cos and sin [S, 1, d/2]."""
    return cast(Tensor, _Rotate.apply(x, cos, sin, fused))


class _Rotate(torch.autograd.Function):
    """Autograd function of a rotation: its gradient is the inverse rotation, so that x is not saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, fused: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.fused = fused
        return compiled(_turn)(x, cos, sin) if fused else _turned(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        back = compiled(_turn)(grad, cos, -sin) if ctx.fused else _turned(grad, cos, sin, -1)
        return back, None, None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)


def _turned(x: Tensor, cos: Tensor, sin: Tensor, way: int) -> Tensor:
    """Compute `_turn` (way 1) or its inverse (way -1) in few passes over memory, without a compiler."""
    first, second = x.chunk(2, -1)
    out = torch.empty_like(x)
    left, right = out.chunk(2, -1)
    torch.mul(first, cos, out=left).addcmul_(second, sin, value=-way)
    torch.mul(second, cos, out=right).addcmul_(first, sin, value=way)
    return out


def _gated(mlp: Any, y: Tensor, fused: bool) -> Tensor:
    gate, up = mlp.gate_proj(y), mlp.up_proj(y)
    if isinstance(mlp.act_fn, torch.nn.SiLU) or type(mlp.act_fn).__name__ == "SiLUActivation":
        return cast(Tensor, _SwiGLU.apply(gate, up, fused))
    return mlp.act_fn(gate) * up


class _SwiGLU(torch.autograd.Function):
    """Autograd function of silu(gate) * up, which saves its two inputs alone."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, fused: bool) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.fused = fused
        return compiled(_gate)(gate, up) if fused else F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        if ctx.fused:
            return (*compiled(_gate_slope)(grad, gate, up), None)
        grad_up = F.silu(gate).mul_(grad)
        return torch.ops.aten.silu_backward(grad * up, gate), grad_up, None


def _gate(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def _gate_slope(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    wide = gate.float() if gate.dtype != torch.float64 else gate
    share = torch.sigmoid(wide)
    return (grad * up * share * (1 + wide * (1 - share))).to(gate.dtype), (grad * wide * share).to(up.dtype)
