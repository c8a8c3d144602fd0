"""Causal language model as a policy: a decision is a token, its distribution softmax(logits / temperature)."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vantage.core.errors import UserError
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories
from vantage.policies import trunk
from vantage.policies.logprob import logits, token_logp
from vantage.policies.lora import (
    FrozenAdapter,
    LoraSettings,
    adapt,
    head_unties,
    merged_state,
    merged_weight,
    refuse_adapters,
)
from vantage.policies.packing import Inputs, buckets, inputs, pack
from vantage.policies.pretrained import dtype_of, read_pretrained, write_pretrained


class LanguagePolicy(nn.Module):
    """Policy of a Hugging Face causal language model, which evaluates completions of prompts.

    Padding is not computed (rows are packed for Llama, Qwen2 and Qwen3, and put into buckets of similar length for other
    architectures), logits only of evaluated decisions, a chunk at a time, and shared prompts once where `prefix_sharing`
    allows. None of this changes a value or a gradient beyond rounding. Dropout is disabled, so that the ratio of a policy to
    itself is 1.

    Args:
        model: an `AutoModelForCausalLM`.
        tokenizer: its tokenizer.
        temperature: divides the logits, above 0, in sampling and in the update: the policy is the tempered distribution.
        prefix_sharing: whether a prompt that rows share is computed once; "auto" where that saves a fifth of the tokens or
            more.
        checkpointing: keep each layer's input only and recompute the rest in the backward pass: less memory for a third
            more time.
        autocast: type of matrix products ("bfloat16"), while the parameters keep theirs; None for the parameters' type.
        fused: fuse the operations between matrix products by torch.compile, which takes some seconds at the first update;
            it is faster on an accelerator.
    """

    memoryless = False

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        temperature: float = 1.0,
        prefix_sharing: bool | str = "auto",
        checkpointing: bool = False,
        autocast: str | None = None,
        fused: bool = False,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise UserError(f"temperature={temperature} is out of range: above 0")
        if prefix_sharing not in (True, False, "auto"):
            raise UserError(f"prefix_sharing={prefix_sharing!r} is not known: true, false or 'auto'")
        refuse_adapters(model)
        self.model = model
        self.tokenizer = tokenizer
        self.temperature = temperature
        self.prefix_sharing = prefix_sharing
        self.checkpointing = checkpointing
        self.autocast = None if autocast is None else dtype_of(autocast)
        self.fused = fused
        self.value_head: nn.Linear | None = None
        self._warned: set[str] = set()
        self._adapted: tuple[Any, ...] = ()
        """peft's wrapper of the model where it has adapters; in a tuple, so that it is no second child module."""
        _still(model)
        if checkpointing and not trunk.supported(model):
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    # loading and saving --------------------------------------------------------------------------------------------

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        dtype: str = "float32",
        lora: LoraSettings | None = None,
        **settings: Any,
    ) -> LanguagePolicy:
        """Read a folder in Hugging Face format.

        Args:
            folder: holds configuration, weights and tokenizer.
            dtype: type of the parameters: "float32", "bfloat16" or "float16".
            lora: adapters to train instead of the weights.
            **settings: arguments of the policy.

        Raises:
            UserError: the folder does not exist or is incomplete; the message says what is missing.
        """
        model, tokenizer = read_pretrained(folder, dtype)
        return cls._made(model, tokenizer, lora, settings)

    @classmethod
    def new(
        cls,
        preset: str = "tiny",
        architecture: str = "llama",
        *,
        seed: int = 0,
        dtype: str = "float32",
        lora: LoraSettings | None = None,
        **settings: Any,
    ) -> LanguagePolicy:
        """Return a small policy with random weights and a tokenizer of characters; see `vantage.policies.tiny.build`."""
        from vantage.policies.tiny import build

        model, tokenizer = build(preset, architecture, seed=seed)
        return cls._made(model.to(dtype_of(dtype)), tokenizer, lora, settings)

    @classmethod
    def _made(
        cls, model: Any, tokenizer: Any, lora: LoraSettings | None, settings: Mapping[str, Any]
    ) -> LanguagePolicy:
        policy = cls(model, tokenizer, **settings)
        if lora is not None:
            policy._adapted = (adapt(model, lora),)
        return policy

    def add_value_head(self) -> None:
        """Add a critic: a linear layer on the last hidden state, initially 0."""
        if self.value_head is None:
            width = self.model.config.get_text_config().hidden_size
            head = nn.Linear(width, 1, device=next(self.model.parameters()).device, dtype=torch.float32)
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
            self.value_head = head

    def critic_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the critic alone."""
        return list(self._critic().parameters())

    def frozen(self) -> Any:
        """Return a frozen copy, without critic.

        With adapters it shares the weights and copies the adapters alone; otherwise it copies all weights.
        """
        if self._adapted:
            return FrozenAdapter(self)
        twin = type(self)(
            copy.deepcopy(self.model), self.tokenizer, temperature=self.temperature, prefix_sharing=self.prefix_sharing
        )
        twin.autocast, twin.fused = self.autocast, self.fused
        return twin.requires_grad_(False).train(self.training)

    def save(self, folder: str | Path, *, merged: bool = True) -> None:
        """Write the model and its tokenizer in Hugging Face format, atomically.

        Args:
            folder: replaced when it exists.
            merged: merge adapters into the weights, so that the folder is that of a plain model; otherwise the adapters alone
                are written in peft's format.
        """
        if self._adapted and not merged:
            write_pretrained(folder, self._adapted[0], self.tokenizer)
        else:
            state = merged_state(self.model) if self._adapted else None
            write_pretrained(
                folder, self.model, self.tokenizer, state, untie=state is not None and head_unties(self.model)
            )

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the trainable state, each tensor once: all weights, or with adapters these and the critic alone."""
        state = super().state_dict(*args, **kwargs)
        if self._adapted:
            return {name: value for name, value in state.items() if ".lora_" in name or name.startswith("value_head.")}
        names = {name for name, _ in self.named_parameters()} | {name for name, _ in self.named_buffers()}
        return {name: value for name, value in state.items() if name in names}

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Restore from `state_dict()`, in place.

        Raises:
            UserError: the names differ from this policy's.
        """
        own = self.state_dict()
        if set(own) != set(state_dict):
            odd = ", ".join(sorted(set(own) ^ set(state_dict))[:5])
            raise UserError(f"the weights are of another policy: they differ at {odd}")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state_dict[name])

    # text ----------------------------------------------------------------------------------------------------------

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """Ids of the tokens that end a completion."""
        ends = getattr(self.model.generation_config, "eos_token_id", None)
        ends = self.tokenizer.eos_token_id if ends is None else ends
        return tuple(ends) if isinstance(ends, list | tuple) else (int(ends),)

    def encode(self, item: Any) -> list[int]:
        """Return the token ids of a prompt: ids unchanged, text by the tokenizer, messages by its chat template.

        A prompt with two start tokens, or with an end token at its end, gives a warning, once.

        Raises:
            UserError: the prompt has no tokens, or is messages and the tokenizer has no chat template.
        """
        if isinstance(item, str):
            found = self.tokenizer(item)["input_ids"]
        elif len(item) and isinstance(item[0], Mapping):
            if not getattr(self.tokenizer, "chat_template", None):
                raise UserError(
                    "the prompt is chat messages, and the tokenizer has no chat template: give prompts as text"
                )
            found = self.tokenizer.apply_chat_template(
                item, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        else:
            found = item
        if not len(found):
            raise UserError(f"the prompt {item!r} has no tokens: a prompt needs at least one")
        tokens = [int(token) for token in found]
        self._check_ends(tokens)
        return tokens

    def _check_ends(self, tokens: Sequence[int]) -> None:
        start, last = self.tokenizer.bos_token_id, len(tokens) - 1
        while last > 0 and not self.tokenizer.decode([tokens[last]]).strip():
            last -= 1
        if start is not None and list(tokens[:2]) == [start, start]:
            self._warn(
                f"a prompt begins with two start tokens {self.tokenizer.bos_token!r}: the tokenizer adds one to a text that has"
                " one already. Remove it from the texts, or give prompts as chat messages, to which only the template adds one"
            )
        if tokens[last] in self.stop_tokens:
            self._warn(
                f"a prompt ends in the end token {self.tokenizer.decode([tokens[last]])!r}, after which most models generate"
                " nothing. Remove it from the texts, set add_eos_token to false in tokenizer_config.json, or let the chat template"
                " begin the assistant's turn where add_generation_prompt is true"
            )

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(text, stacklevel=4)

    # evaluation ----------------------------------------------------------------------------------------------------

    def evaluate(self, batch: Trajectories, want: frozenset[str]) -> Evaluation:
        """Evaluate the batch's decisions where the mask is True; elsewhere the outputs are 0. With gradient.

        `logp` and `entropy` [N, T] are float32 and of the distribution at the policy's temperature, as are the logits of
        `distribution` [N, T, V]; `hidden` [N, T, D] is the input of the output layer; `value` [N, T] needs `add_value_head`.
        """
        layout = inputs(batch, batch.mask)
        output = Evaluation()
        with self._precision(batch.device):
            hidden = self._hidden(layout)
        if want & {"logp", "entropy", "distribution"}:
            weight, bias, softcap, scale = self._head(hidden)
            temperature = self.temperature * scale
        if want & {"logp", "entropy"}:
            logp, entropy = token_logp(
                hidden.to(weight.dtype),
                weight,
                bias,
                batch.action[layout.row, layout.step],
                temperature=temperature,
                softcap=softcap,
                entropy="entropy" in want,
                fused=self.fused,
            )
            if "logp" in want:
                output.logp = layout.spread(logp)
            if entropy is not None:
                output.entropy = layout.spread(entropy)
        if "value" in want:
            output.value = layout.spread(self._critic()(hidden.float()).squeeze(-1))
        if "hidden" in want:
            output.hidden = layout.spread(hidden)
        if "distribution" in want:
            output.distribution = layout.spread(
                logits(hidden.to(weight.dtype), weight, bias, temperature=temperature, softcap=softcap)
            )
        return output

    @torch.no_grad()
    def values(self, batch: Trajectories) -> tuple[Tensor, Tensor]:
        """Return (value, next_value), each [N, T] float32, 0 where the mask is False; no gradient.

        The state after a decision is the one before the policy's next decision, past any inserted tokens. After the last one
        the value is 0, in a truncated row too: it is not continued, and its outcome is in its rewards.
        """
        decided = batch.mask
        layout = inputs(batch, decided)
        with self._precision(batch.device):
            hidden = self._hidden(layout)
        value = layout.spread(self._critic()(hidden.float()).squeeze(-1))
        width = decided.shape[1]
        place = torch.where(decided, torch.arange(width, device=decided.device), width)
        # The next evaluated position of each; `width`, whose value is 0, where there is none.
        follower = torch.nn.functional.pad(place.flip(1).cummin(1).values.flip(1)[:, 1:], (0, 1), value=width)
        following = torch.nn.functional.pad(value, (0, 1)).gather(1, follower)
        return value * batch.mask, following * batch.mask

    def _critic(self) -> nn.Linear:
        if self.value_head is None:
            raise UserError("the language policy has no critic: call add_value_head() before training")
        return self.value_head

    def _head(self, hidden: Tensor) -> tuple[Tensor, Tensor | None, float | None, float]:
        """Return the output layer's (weight, bias, cap of the logits, divisor of the logits)."""
        head, config = self.model.get_output_embeddings(), self.model.config.get_text_config()
        softcap = getattr(config, "final_logit_softcapping", None)
        divisor = float(getattr(config, "logits_scaling", 1.0)) / float(getattr(config, "logit_scale", 1.0) or 1.0)
        weight, bias = merged_weight(head), getattr(head, "bias", None)
        if self.autocast is not None:
            weight, bias = weight.to(self.autocast), None if bias is None else bias.to(self.autocast)
        return weight, bias, softcap, divisor

    def _precision(self, device: torch.device) -> Any:
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(device.type, self.autocast)

    def _hidden(self, layout: Inputs) -> Tensor:
        """Return the last hidden state at each evaluated decision: [M, D]."""
        if not len(layout.row):
            width = self.model.config.get_text_config().hidden_size
            return torch.zeros(0, width, device=layout.tokens.device, dtype=next(self.model.parameters()).dtype)
        if trunk.supported(self.model):
            packed = pack(layout, self.prefix_sharing)
            states = trunk.hidden_states(
                self.model,
                packed.tokens,
                packed.positions,
                packed.plan,
                packed.needed,
                recompute=self.checkpointing,
                fused=self.fused,
            )
            return states if packed.index is None else states.index_select(0, packed.index)
        return self._bucketed(layout)

    def _bucketed(self, layout: Inputs) -> Tensor:
        """Return the same by the module's own forward, with padding on the right, which causal attention ignores."""
        row, column = layout.row, layout.column
        found, order = [], []
        place = torch.empty_like(layout.length)
        for rows, longest in buckets(layout.length):
            states = self.model.base_model(input_ids=layout.tokens[rows, :longest], use_cache=False).last_hidden_state
            place.fill_(-1)
            place[rows] = torch.arange(len(rows), device=rows.device)
            inside = (place[row] >= 0).nonzero().squeeze(-1)
            order.append(inside)
            found.append(states[place[row[inside]], column[inside]])
        return torch.cat(found)[torch.argsort(torch.cat(order))]


def _still(model: Any) -> None:
    """Disable dropout, so that the policy is one distribution in any mode of the module."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
