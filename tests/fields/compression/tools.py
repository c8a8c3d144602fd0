"""Small networks for tests: random weights, random rows, nothing trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

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
