"""Masked diffusion language model as a policy: a bidirectional transformer that fills in masked tokens.

An answer has a fixed number of tokens; a shorter text is padded with the end token. The model predicts all masked positions at
once from the prompt and the positions that are not masked. Its likelihood has a bound: with a random set M of masked positions,

    ELBO(y | x) = E_M [ w(M) sum_{i in M} log p(y_i | x, y with M masked) ]  <=  log p(y | x)

(LLaDA, arXiv 2502.09992, eq. 3), so `logp` is a proxy, and two policies that are compared must be evaluated with the same sets.
The column `masked_weight` [N, T] of a batch holds them: w(M) where a position is masked, 0 where it is not.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vantage.core.errors import UserError
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories
from vantage.policies.folder import read_policy, write_policy

PAD, END, MASK = 0, 1, 2
SPECIAL = 3
"""Number of special tokens."""


class Block(nn.Module):
    """Transformer block: bidirectional attention and a feed-forward layer, each with pre-normalisation and a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed, self.back = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        """Map [N, S, width] to the same shape; `visible` [N, 1, 1, S] is False for tokens without attention."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.attention(self.before_attention(x)).chunk(3, -1)
        )
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        x = x + self.mix(seen.transpose(1, 2).flatten(2))
        return x + self.back(F.gelu(self.feed(self.before_feed(x))))


class MaskedDiffusionPolicy(nn.Module):
    """Policy that fills in masked answers to prompts; tokens are characters.

    In a batch, `observation["tokens"]` [N, P] is the prompt, padded on the left, and `action` [N, T] the whole answer.

    Args:
        alphabet: characters of the vocabulary.
        prompt_length: largest number of tokens of a prompt.
        length: T, tokens of an answer, the end token included.
        width, layers, heads: sizes of the transformer; `heads` divides `width`.
        seed: seed of the initial weights.

    Raises:
        UserError: a size is out of range.
    """

    memoryless = False

    def __init__(
        self,
        alphabet: str,
        prompt_length: int,
        length: int,
        *,
        width: int = 96,
        layers: int = 3,
        heads: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if min(prompt_length, length, width, layers, heads) < 1 or width % heads:
            raise UserError(
                f"masked diffusion: prompt_length={prompt_length}, length={length}, width={width}, layers={layers},"
                f" heads={heads} is out of range: at least 1 each, and heads must divide width"
            )
        self.letters = "".join(sorted(set(alphabet)))
        self.config: dict[str, Any] = {
            "alphabet": self.letters,
            "prompt_length": prompt_length,
            "length": length,
            "width": width,
            "layers": layers,
            "heads": heads,
        }
        self.prompt_length, self.length = prompt_length, length
        self.temperature = 1.0
        """Divides the logits, in sampling and in evaluation."""
        vocabulary = SPECIAL + len(self.letters)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(vocabulary, width)
            self.position = nn.Parameter(0.02 * torch.randn(prompt_length + length, width))
            self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
            self.norm = nn.LayerNorm(width)
            self.head = nn.Linear(width, vocabulary)
            nn.init.normal_(self.embedding.weight, std=width**-0.5)

    # text ----------------------------------------------------------------------------------------------------------

    def encode(self, texts: Sequence[str], answers: bool = False) -> Tensor:
        """Return tokens [N, P] of prompts, padded on the left, or [N, T] of answers, padded with the end token.

        Raises:
            UserError: a character is not in the alphabet, or a text is too long.
        """
        limit = self.length - 1 if answers else self.prompt_length
        number = {letter: SPECIAL + place for place, letter in enumerate(self.letters)}
        rows = []
        for text in texts:
            odd = next((letter for letter in text if letter not in number), None)
            if odd is not None:
                raise UserError(f"{text!r:.60} holds {odd!r}, which is not in the model's alphabet {self.letters!r}")
            if len(text) > limit:
                kind, option = ("answer", "length") if answers else ("prompt", "prompt_length")
                raise UserError(
                    f"the {kind} {text!r:.60} has {len(text)} characters, at most {limit} fit: raise {option}"
                )
            tokens = [number[letter] for letter in text]
            fill = [END if answers else PAD] * ((self.length if answers else limit) - len(tokens))
            rows.append([*tokens, *fill] if answers else [*fill, *tokens])
        return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), -1)

    def decode(self, action: Tensor) -> list[str]:
        """Return the texts of answers [N, T], up to the first end token."""
        texts = []
        for row in action.tolist():
            kept = row[: row.index(END)] if END in row else row
            texts.append("".join(self.letters[token - SPECIAL] for token in kept if token >= SPECIAL))
        return texts

    # evaluation ----------------------------------------------------------------------------------------------------

    def logits(self, prompt: Tensor, answer: Tensor) -> Tensor:
        """Return logits [N, T, V] of every position of an answer [N, T] that may hold `MASK`; PAD and MASK have -inf."""
        tokens = torch.cat([prompt, answer], 1)
        visible = (tokens != PAD)[:, None, None, :]
        # Shorter prompts are right-aligned.
        x = self.embedding(tokens) + self.position[self.prompt_length - prompt.shape[1] :]
        for block in self.blocks:
            x = block(x, visible)
        found = self.head(self.norm(x[:, prompt.shape[1] :])).float() / self.temperature
        never = torch.zeros(found.shape[-1], dtype=torch.bool, device=found.device)
        never[[PAD, MASK]] = True
        return found.masked_fill(never, -torch.inf)

    def evaluate(self, batch: Trajectories, want: frozenset[str]) -> Evaluation:
        """Evaluate answers; `logp` [N, T] is a proxy and carries gradient.

        With the column `masked_weight`, `logp` is each position's term of a sample of the ELBO: their sum over T is the
        sample. Without it, all positions are masked at once and evaluated in one pass, as independent tokens (the estimate of
        diffu-GRPO, arXiv 2504.12216, without masks on the prompt).
        """
        action, weight = batch.action, batch.get("masked_weight")
        given = torch.full_like(action, MASK) if weight is None else torch.where(weight > 0, MASK, action)
        log_probs = self.logits(batch.observation["tokens"], given).log_softmax(-1)
        logp = log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)
        evaluation = Evaluation(logp=logp if weight is None else logp * weight, proxy=True)
        if "entropy" in want:
            evaluation.entropy = -torch.where(log_probs.isfinite(), log_probs.exp() * log_probs, 0.0).sum(-1)
        return evaluation

    # saving --------------------------------------------------------------------------------------------------------

    def frozen(self) -> MaskedDiffusionPolicy:
        """Return a frozen copy."""
        return copy.deepcopy(self).requires_grad_(False).eval()

    def save(self, folder: Any) -> None:
        """Write `model.safetensors` and `config.json` into the folder."""
        write_policy(folder, "masked-diffusion", self.state_dict(), self.config)

    @classmethod
    def load(cls, folder: Any) -> MaskedDiffusionPolicy:
        """Read what `save` wrote.

        Raises:
            UserError: the folder holds no such policy; the message says what is missing.
        """
        config, tensors = read_policy(folder, "masked-diffusion", "masked diffusion model")
        policy = cls(**config)
        policy.load_state_dict(tensors)
        return policy
