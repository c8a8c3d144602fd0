"""Causal language models on text: the user's file, or text of a small grammar, and a small model or the user's own."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from vantage.core.errors import UserError, require
from vantage.fields.compression.network import Network, Rows
from vantage.fields.compression.training import fit, trained

CHARACTERS = 120_000
"""Number of characters of the grammar's text."""
HELD = 0.1
"""Share of the text, at its end, that is held out."""
STEPS, BATCH, RATE = 400, 16, 3e-3


def text(
    data: str = "", model: str = "", length: int = 64, seed: int = 0, steps: int = STEPS, characters: int = CHARACTERS
) -> Network:
    """Return a causal language model with windows of a text.

    Args:
        data: text file; "" for the grammar's text.
        model: folder in Hugging Face format to compress; "" trains a new Llama of 0.2 M parameters over the text's characters.
        length: tokens per window.
        seed: seed of the new model, its training and the grammar's text.
        steps: optimiser steps of its training.
        characters: number of characters of the grammar's text.

    Raises:
        UserError: a file or folder cannot be read, or the text is too short.
        ImportError: transformers is not installed; the message names the extra.
    """
    require("transformers", "language")
    from vantage.policies.pretrained import read_pretrained

    if length < 2:
        raise UserError(f"length={length} is out of range: at least 2")
    content = read_text(data) if data else made_text(characters, seed)
    if model:
        chosen, tokenizer = read_pretrained(model)
    else:
        chosen, tokenizer = _new(content, seed)
    chosen.config.use_cache = False
    tokens = torch.tensor(tokenizer(content, add_special_tokens=False)["input_ids"])
    windows = tokens[: (len(tokens) - 1) // length * length + 1]
    if len(windows) < 20 * length:
        raise UserError(f"the text {data or 'made'} has {len(tokens)} tokens; at least {20 * length + 1} are needed")
    # Neighbouring windows share one token: the last target of one is the first input of the next.
    rows = windows.unfold(0, length + 1, length).contiguous()
    cut = int(len(rows) * (1 - HELD))
    network = Network(
        name="text",
        model=chosen.eval(),
        train=(rows[:cut],),
        held=(rows[cut:],),
        predict=next_tokens,
        figure="perplexity",
        tokenizer=tokenizer,
        rows=64,
    )
    if model:
        return network
    decides = {"text": hashlib.sha256(content.encode()).hexdigest(), "length": length, "seed": seed, "steps": steps}
    return trained(network, decides, (__file__,), lambda: fit(network, steps=steps, batch=BATCH, lr=RATE, seed=seed))


def next_tokens(model: nn.Module, rows: Rows) -> tuple[Tensor, Tensor]:
    """Return logits [B, T, V] and next tokens [B, T] of rows (tokens [B, T + 1],)."""
    tokens = rows[0]
    return model(input_ids=tokens[:, :-1], use_cache=False).logits, tokens[:, 1:]


def read_text(path: str) -> str:
    """Return a text file's content.

    Raises:
        UserError: the file cannot be read as UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data={path}: the text cannot be read: {error}") from error


def _new(content: str, seed: int) -> tuple[nn.Module, object]:
    from transformers import AutoModelForCausalLM

    from vantage.policies.tiny import Shape, new_config, new_tokenizer

    tokenizer = new_tokenizer(content)
    # Two query heads per key-value head, as in large models.
    config = new_config(Shape(width=64, inner=192, layers=3, heads=8, shared_heads=4), "llama", tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32), tokenizer


_NOUNS = (
    ("fox", "foxes"),
    ("baker", "bakers"),
    ("river", "rivers"),
    ("king", "kings"),
    ("child", "children"),
    ("ship", "ships"),
)
_VERBS = (("sees", "see"), ("follows", "follow"), ("loves", "love"), ("carries", "carry"), ("fears", "fear"))
_WORDS = ("old", "red", "quiet", "hungry", "clever", "distant")
_PLACES = ("in the wood", "by the sea", "at night", "on the hill", "under the stars")


def made_text(characters: int, seed: int = 0) -> str:
    """Return English-like sentences of a small grammar with agreement of subject and verb and with relative clauses."""
    generator = torch.Generator().manual_seed(seed)
    # All random numbers are drawn at once; each sentence uses as many as it needs.
    draws = iter(torch.randint(0, 1 << 30, (characters,), generator=generator).tolist())

    def pick(options: tuple[object, ...]) -> object:
        return options[next(draws) % len(options)]

    def noun() -> tuple[str, int]:
        forms, number = pick(_NOUNS), next(draws) % 2
        word = f"{pick(_WORDS)} " if next(draws) % 2 else ""
        return f"the {word}{forms[number]}", number  # type: ignore[index]

    def sentence() -> str:
        subject, number = noun()
        if next(draws) % 3 == 0:
            other, _ = noun()
            subject += f" that {pick(_VERBS)[number]} {other}"  # type: ignore[index]
        found = f"{subject} {pick(_VERBS)[number]} {noun()[0]}"  # type: ignore[index]
        if next(draws) % 2:
            found += f" {pick(_PLACES)}"
        return found[0].upper() + found[1:] + "."

    parts: list[str] = []
    size = 0
    while size < characters:
        parts.append(sentence())
        size += len(parts[-1]) + 1
    return " ".join(parts)[:characters]
