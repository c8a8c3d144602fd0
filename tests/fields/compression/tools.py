"""Small networks for tests: random weights, random rows, nothing trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.reference import Case
from vantage.fields.compression.digits import classify, perceptron
from vantage.fields.compression.network import Network
from vantage.fields.compression.text import next_tokens


def small(widths: tuple[int, ...] = (6, 8, 5, 3), rows: int = 40, seed: int = 0) -> Network:
    """A perceptron on random inputs, labelled by another perceptron."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, teacher = perceptron(widths), perceptron(widths)
    x = torch.randn(2 * rows, widths[0], generator=generator)
    with torch.no_grad():
        y = teacher(x).argmax(-1)
    return Network("small", model, (x[:rows], y[:rows]), (x[rows:], y[rows:]), classify)


class TwoBlocks(nn.Module):
    """Residual blocks x + down(relu(up(x))) in a stack, as a language model has them."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        pair = [("up", nn.Linear(width, inner, False)), ("down", nn.Linear(inner, width, False))]
        other = [("up", nn.Linear(width, inner, False)), ("down", nn.Linear(inner, width, False))]
        self.layers = nn.ModuleList([nn.ModuleDict(dict(pair)), nn.ModuleDict(dict(other))])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.layers:
            x = x + block["down"](torch.relu(block["up"](x)))  # type: ignore[index]
        return x


def two_blocks(case: Case) -> Network:
    """The network of a reference case: its weights by layer, and its inputs [rows, positions, width] where it has any."""
    width, inner = len(case.inputs["layers.0.down"]), len(case.inputs["layers.0.up"])
    model = TwoBlocks(width, inner)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(case.tensor(name.removesuffix(".weight")))
    x = case.tensor("x", torch.float32) if "x" in case.inputs else torch.zeros(1, 1, width)
    rows = (x, torch.zeros(x.shape[:2], dtype=torch.long))
    return Network("given", model, rows, rows, lambda model, rows: (model(rows[0]), rows[1]))


def image_model() -> nn.Sequential:
    """Two convolutions, pooling, flattening and a linear layer."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding="same"), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip


def llama(seed: int = 0) -> Any:
    """A Llama of two layers: four query heads of width 4, two to a key-value head, and 12 feed-forward channels."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=11, hidden_size=16, intermediate_size=12, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=4, max_position_embeddings=32, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM(config).eval()


def language(seed: int = 0) -> Network:
    """That Llama with random tokens."""
    tokens = torch.randint(11, (12, 9), generator=torch.Generator().manual_seed(seed))
    return Network("llama", llama(seed), (tokens[:8],), (tokens[8:],), next_tokens, "perplexity")
