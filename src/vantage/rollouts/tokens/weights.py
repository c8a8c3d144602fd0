"""Weights of Llama, Qwen2 and Qwen3 for the lean backend: layers on the module's own parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Attend = Callable[[int, Tensor, Tensor], Tensor]
"""Function from (layer, queries [m, Hq, d], keys and values [m, 2, Hkv, d]), rotated, to the heads' outputs [m, Hq * d]."""


class _Norm:
    """Root-mean-square normalisation with a module's weight."""

    def __init__(self, module: Any) -> None:
        self.weight, self.eps = module.weight, module.variance_epsilon
        self.shape = tuple(self.weight.shape)

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.shape, self.weight, self.eps)


class _Direct:
    """Decoder layer on the module's own linear maps; a wrapped one (LoRA, quantised) is called instead of read."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.dim = attention.head_dim
        self.before, self.between = _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm)
        self.q, self.k, self.v, self.o = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
        self.norms = (_Norm(attention.q_norm), _Norm(attention.k_norm)) if hasattr(attention, "q_norm") else None
        self.gate, self.up, self.down, self.act = mlp.gate_proj, mlp.up_proj, mlp.down_proj, mlp.act_fn

    def heads(self, x: Tensor, rope: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Return rotated queries [m, Hq, d] and keys with values [m, 2, Hkv, d] of the residual stream [m, D]."""
        x = self.before(x)
        q, k, v = (p(x).unflatten(-1, (-1, self.dim)) for p in (self.q, self.k, self.v))
        if self.norms is not None:
            q, k = self.norms[0](q), self.norms[1](k)
        return _rotated(q, rope), torch.stack((_rotated(k, rope), v), 1)

    def after(self, x: Tensor, read: Tensor) -> Tensor:
        """Return the residual stream [m, D] after the heads' outputs [m, Hq * d] and the feed-forward block."""
        x = x + self.o(read)
        y = self.between(x)
        return x + self.down(self.act(self.gate(y)) * self.up(y))


def _rotated(x: Tensor, rope: tuple[Tensor, ...]) -> Tensor:
    """Return the rotary embedding of heads [m, H, d]; the sign is in the sine's first half, so that a roll suffices."""
    cos, sin = rope
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


class _Joined(_Direct):
    """Decoder layer whose query, key and value maps are one matrix, and gate and up another, for CUDA.

    Fewer and larger products and one rotation for queries and keys. The two matrices are temporary, as in `_Folded`.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__(layer)
        maps, halves = (self.q, self.k, self.v), (self.gate, self.up)
        self.queries, self.kv = self.q.out_features // self.dim, self.k.out_features // self.dim
        self.qkv = torch.cat([p.weight for p in maps])
        self.bias = None if self.q.bias is None else torch.cat([p.bias for p in maps])
        self.gate_up = torch.cat([p.weight for p in halves])
        self.gate_bias = None if self.gate.bias is None else torch.cat([p.bias for p in halves])
        self.norm = None
        if self.norms is not None:
            self.norm = torch.cat([n.weight.expand(h, -1) for n, h in zip(self.norms, (self.queries, self.kv))])

    def heads(self, x: Tensor, rope: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Return rotated queries [m, Hq, d] and keys with values [m, 2, Hkv, d] of the residual stream [m, D]."""
        y = F.linear(self.before(x), self.qkv, self.bias).view(len(x), -1, self.dim)
        turned = y[:, : self.queries + self.kv]
        qk = turned
        if self.norm is not None and self.norms is not None:
            qk = F.rms_norm(qk, (self.dim,), None, self.norms[0].eps) * self.norm
        cos, sin = rope
        torch.addcmul(qk * cos, qk.roll(self.dim // 2, -1), sin, out=turned)
        return y[:, : self.queries], y[:, self.queries :].unflatten(1, (2, self.kv))

    def after(self, x: Tensor, read: Tensor) -> Tensor:
        """Return the residual stream [m, D] after the heads' outputs [m, Hq * d] and the feed-forward block."""
        x = x + self.o(read)
        y = F.linear(self.between(x), self.gate_up, self.gate_bias)
        return x + self.down(self.act(y[:, : len(self.gate_up) // 2]) * y[:, len(self.gate_up) // 2 :])


class _Folded:
    """Decoder layer in few operations, for small float32 models on the CPU, where operations cost more than products.

    Query, key and value maps are one matrix, gate and up another; the norms' weights and the scale of the scores are
    multiplied into them, and the two halves of a head are interleaved, so that the rotation is one complex product. The
    same permutation of queries and keys does not change the scores. These matrices are temporary: they exist during
    one call of the engine.
    """

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        maps = (attention.q_proj, attention.k_proj, attention.v_proj)
        self.dim = dim = attention.head_dim
        hidden = maps[0].in_features
        self.queries, self.kv = maps[0].out_features // dim, maps[1].out_features // dim
        self.turned = self.queries + self.kv
        norm, between = layer.input_layernorm, layer.post_attention_layernorm
        self.eps = hidden * norm.variance_epsilon, hidden * between.variance_epsilon
        pairs = torch.arange(dim, device=norm.weight.device).view(2, -1).t().flatten()
        normed = hasattr(attention, "q_norm")
        scale = attention.scaling

        def laid(x: Tensor, heads: int, factor: float) -> Tensor:
            return x.view(heads, dim, -1)[:, pairs].view(x.shape).mul_(factor)

        weights = [p.weight for p in maps]
        weights[0] = laid(weights[0], self.queries, 1.0 if normed else scale)
        weights[1] = laid(weights[1], self.kv, 1.0)
        self.qkv = torch.cat(weights).mul_(norm.weight * hidden**0.5)
        self.bias = None
        if maps[0].bias is not None:
            biases = [p.bias for p in maps]
            biases[0] = laid(biases[0], self.queries, 1.0 if normed else scale)
            biases[1] = laid(biases[1], self.kv, 1.0)
            self.bias = torch.cat(biases)
        self.norm = None
        if normed:
            q, k = attention.q_norm, attention.k_norm
            self.norm_eps = dim * q.variance_epsilon
            a, b = q.weight[pairs] * (scale * dim**0.5), k.weight[pairs] * dim**0.5
            self.norm = torch.cat((a.expand(self.queries, dim), b.expand(self.kv, dim)))
        self.o, self.o_bias = attention.o_proj.weight.t(), attention.o_proj.bias
        self.gate_up = torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight)).mul_(between.weight * hidden**0.5)
        self.gate_bias = None if mlp.gate_proj.bias is None else torch.cat((mlp.gate_proj.bias, mlp.up_proj.bias))
        self.inner = mlp.gate_proj.out_features
        self.down, self.down_bias = mlp.down_proj.weight.t(), mlp.down_proj.bias

    def heads(self, x: Tensor, rope: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Return rotated, scaled queries [m, Hq, d] and keys with values [m, 2, Hkv, d] of the residual stream [m, D]."""
        y = x * torch.linalg.vecdot(x, x).add_(self.eps[0]).rsqrt_().unsqueeze(1)
        y = F.linear(y, self.qkv, self.bias).view(len(x), -1, self.dim)
        qk = y[:, : self.turned]
        if self.norm is not None:
            qk.mul_(torch.linalg.vecdot(qk, qk).add_(self.norm_eps).rsqrt_().unsqueeze(2)).mul_(self.norm)
        torch.view_as_complex(qk.unflatten(-1, (-1, 2))).mul_(rope[0])
        return y[:, : self.queries], y[:, self.queries :].unflatten(1, (2, self.kv))

    def after(self, x: Tensor, read: Tensor) -> Tensor:
        """Return the residual stream [m, D] after the heads' outputs [m, Hq * d] and the feed-forward block."""
        x = torch.addmm(x, read, self.o)
        if self.o_bias is not None:
            x.add_(self.o_bias)
        y = x * torch.linalg.vecdot(x, x).add_(self.eps[1]).rsqrt_().unsqueeze(1)
        y = F.linear(y, self.gate_up, self.gate_bias)
        x = torch.addmm(x, F.silu(y[:, : self.inner]).mul_(y[:, self.inner :]), self.down)
        return x if self.down_bias is None else x.add_(self.down_bias)


class Weights:
    """Model's weights for one call of the lean backend; invalid after the weights change."""

    def __init__(self, model: Any, layer: type | None = None) -> None:
        """Read the model's parameters; `layer` is one of the classes above, or None to choose it by model and device."""
        body, config = model.model, model.config
        self.embedding, self.head, self.norm = body.embed_tokens, model.lm_head, _Norm(body.norm)
        self.rotary = body.rotary_emb
        weight = self.embedding.weight
        self.device, self.dtype = weight.device, weight.dtype
        self.kv_heads, self.dim = config.num_key_value_heads, body.layers[0].self_attn.head_dim
        kind = suited(model) if layer is None else layer
        self.folded = kind is _Folded
        self.layers: list[Any] = [kind(x) for x in body.layers]
        self.scale = 1.0 if self.folded else body.layers[0].self_attn.scaling
        self._table: tuple[Tensor, ...] | None = None
        self.native: Any = None  # the compiled path (`native.Native`) where there is one; set by `weights_of`

    def table(self, length: int) -> tuple[Tensor, ...]:
        """Return the rotations of at least `length` positions, [P, 1, ..] each."""
        if self._table is None or self._table[0].shape[0] < length:
            have = 0 if self._table is None else self._table[0].shape[0]
            place = torch.arange(max(length, 2 * have, 256), device=self.device, dtype=torch.float32)
            angle = torch.outer(place, self.rotary.inv_freq.to(self.device, torch.float32)).unsqueeze(1)
            scaling = self.rotary.attention_scaling
            if self.folded:
                self._table = (torch.polar(torch.full_like(angle, scaling), angle),)
            else:
                cos, sin = angle.cos() * scaling, angle.sin() * scaling
                self._table = torch.cat((cos, cos), -1).to(self.dtype), torch.cat((-sin, sin), -1).to(self.dtype)
        return self._table

    def trunk(self, ids: Tensor, positions: Tensor, length: int, attend: Attend) -> Tensor:
        """Return the hidden states [m, D] before the last norm, of tokens [m] at these positions [m], all below `length`."""
        rope = tuple(table.index_select(0, positions) for table in self.table(length))
        x = F.embedding(ids, self.embedding.weight) if type(self.embedding) is nn.Embedding else self.embedding(ids)
        for index, layer in enumerate(self.layers):
            x = layer.after(x, attend(index, *layer.heads(x, rope)))
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [m, V] of hidden states [m, D]."""
        return self.head(self.norm(hidden))


def suited(model: Any) -> type:
    """Return the kind of layer to use: with joined matrices where the maps are plain and the copies at each call are cheap.

    On the CPU that is up to 64 million parameters in float32, the time of about a fifth of a second of products; on CUDA,
    up to 2 GB, a millisecond of copying.
    """
    layers = model.model.layers
    weight = model.model.embed_tokens.weight
    parts = [part for layer in layers for part in (layer.self_attn, layer.mlp)]
    plain = all(type(x) is nn.Linear for part in parts for name, x in part.named_children() if name.endswith("_proj"))
    count = sum(parameter.numel() for parameter in layers.parameters())
    if not plain:
        return _Direct
    if weight.device.type == "cuda":
        return _Joined if count * weight.element_size() <= 2 << 30 else _Direct
    silu = all(type(layer.mlp.act_fn).__name__ in ("SiLU", "SiLUActivation") for layer in layers)
    return _Folded if silu and weight.dtype == torch.float32 and count <= 64_000_000 else _Direct
