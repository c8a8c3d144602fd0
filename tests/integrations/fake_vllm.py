"""A stand-in for vLLM with the shapes of its interface (LLM, SamplingParams, RequestOutput), on transformers' forward.

It computes in the type that it is told (`dtype`), so that it can differ from the learner as an inference engine does, and
refuses arguments that the real one does not have.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch


@dataclass
class SamplingParams:
    """The settings of `vllm.SamplingParams` that the bridge uses."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: tuple[int, ...]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    request_id: str
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = True


@dataclass
class Calls:
    """What the bridge asked for."""

    parameters: list[SamplingParams] = field(default_factory=list)
    pushes: int = 0
    resets: int = 0
    sleeping: list[str] = field(default_factory=list)


class LLM:
    """`vllm.LLM` of one process: offline generation from a folder with a configuration and a tokenizer."""

    noise = 0.0
    """Added to every second logit before sampling: an inference engine whose numerics are off."""
    silent: tuple[int, ...] = ()
    """Positions of a completion of which no log-probability is reported."""
    keeps_cache = False
    """Refuse to drop the cache of prompts, as with requests under way."""

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "auto",
        load_format: str = "auto",
        logprobs_mode: str = "raw_logprobs",
        gpu_memory_utilization: float = 0.9,
        max_model_len: int | None = None,
        enable_sleep_mode: bool = False,
    ) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        assert load_format == "dummy"
        assert logprobs_mode == "processed_logprobs"
        config = AutoConfig.from_pretrained(model)
        assert config.architectures
        random.seed(1234)
        np.random.seed(1234)  # noqa: NPY002 - as vLLM does
        torch.manual_seed(1234)  # weights of its own until some are pushed
        self.model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.sleepy = enable_sleep_mode
        self.calls = Calls()
        self._worker = SimpleNamespace(model_runner=SimpleNamespace(model=self), device=torch.device("cuda"))

    def load_weights(self, weights: Sequence[tuple[str, torch.Tensor]]) -> set[str]:
        """What the models in vLLM's worker have."""
        own = dict(self.model.named_parameters())
        own |= {"lm_head.weight": self.model.lm_head.weight}
        with torch.no_grad():
            for name, tensor in weights:
                own[name].copy_(tensor)
        self.calls.pushes += 1
        return {name for name, _ in weights}

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> list[Any]:
        call = getattr(self._worker, method) if isinstance(method, str) else method
        return [call(self._worker, *args, **(kwargs or {}))]

    def reset_prefix_cache(self) -> bool:
        self.calls.resets += 1
        return not self.keeps_cache

    def sleep(self, level: int = 1) -> None:
        assert self.sleepy
        assert level in (1, 2)
        self.calls.sleeping.append(f"sleep {level}")
        if level == 2:
            with torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.fill_(torch.nan)

    def wake_up(self, tags: list[str] | None = None) -> None:
        self.calls.sleeping.append(f"wake {','.join(tags or [])}")

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[dict[str, list[int]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        several = (
            list(sampling_params) if isinstance(sampling_params, Sequence) else [sampling_params or SamplingParams()] * len(prompts)
        )  # fmt: skip
        assert len(several) == len(prompts)
        self.calls.parameters += several
        return [
            RequestOutput(str(place), list(prompt["prompt_token_ids"]), [self._one(prompt["prompt_token_ids"], chosen)])
            for place, (prompt, chosen) in enumerate(zip(prompts, several, strict=True))
        ]

    def _one(self, prompt: list[int], chosen: SamplingParams) -> CompletionOutput:
        assert chosen.n == 1
        assert chosen.ignore_eos
        generator = torch.Generator()
        if chosen.seed is not None:
            generator.manual_seed(chosen.seed)
        ids, reported, reason = list(prompt), [], "length"
        for place in range(chosen.max_tokens or 0):
            logits = self.model(torch.tensor([ids])).logits[0, -1].float()
            logits[::2] += self.noise
            if chosen.top_k:
                logits[logits < logits.topk(chosen.top_k).values[-1]] = -torch.inf
            logp = (logits / (chosen.temperature or 1.0)).log_softmax(-1)
            token = (
                int(torch.multinomial(logp.exp(), 1, generator=generator)) if chosen.temperature else int(logp.argmax())
            )
            ids.append(token)
            reported.append({} if place in self.silent else {token: Logprob(float(logp[token]), 1)})
            drawn = ids[len(prompt) :]
            text = (
                self.tokenizer.decode(drawn, skip_special_tokens=chosen.skip_special_tokens)
                if chosen.detokenize
                else ""
            )
            if token in (chosen.stop_token_ids or ()) or any(stop in text for stop in chosen.stop or ()):
                reason = "stop"
                break
        return CompletionOutput(0, text, tuple(drawn), None, reported if chosen.logprobs is not None else None, reason)


def module() -> ModuleType:
    """Return it as a module of the name `vllm`."""
    made = ModuleType("vllm")
    made.LLM = LLM  # type: ignore[attr-defined]
    made.SamplingParams = SamplingParams  # type: ignore[attr-defined]
    return made
