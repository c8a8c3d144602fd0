"""Rollouts by vLLM behind the interface of `LanguageEngine`: the learner's weights are pushed to it when they have changed.

vLLM 0.10.2 or later (the first whose `logprobs_mode="processed_logprobs"` reports the distribution that was drawn from,
temperature and truncation included), in the learner's process on one device. This was written against vLLM's documented
interface and is tested against a stand-in of it; it has not been run against vLLM itself.
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vantage.core.context import Context
from vantage.core.errors import UserError, require
from vantage.core.protocols import Prompts
from vantage.core.trajectories import Trajectories
from vantage.policies.lora import merged_state
from vantage.rollouts.language import LanguageEngine
from vantage.rollouts.tokens.completions import Completions
from vantage.rollouts.tokens.sampling import Sampling, row_seeds
from vantage.selection.importance import record_mismatch


class VllmEngine(LanguageEngine):
    """Gathers completions from a `LanguagePolicy` with vLLM.

    Rows have the columns of `LanguageEngine`, with two differences. `logp_sampling` [N, T] is always there: it is what vLLM
    says of each drawn token, under the distribution that it drew from. `logp_old` [N, T] is computed by the policy itself,
    in one pass without gradient, so that the ratio of an objective compares the learner with the learner; how far apart
    the two are is recorded (`mismatch/...`), and `TruncatedImportance` corrects for it. `entropy_old` is left to the part
    that declares it.

    Conversations through a live cache (`converse`) are not offered; `respond` is.

    Args:
        policy: what acts.
        sampling: how tokens are drawn and when a completion ends; its temperature is ignored, the policy's counts.
        llm: a `vllm.LLM` of the same architecture in this process, with `logprobs_mode="processed_logprobs"`; None makes one.
        seeded: give each row a random stream of its own, which vLLM draws row by row; False is faster and repeats nothing.
        sleep: free vLLM's memory between rollouts (`enable_sleep_mode`).
        **options: of `vllm.LLM`, such as `gpu_memory_utilization` and `max_model_len`.

    Raises:
        ImportError: vLLM is not installed; the message names the extra.
    """

    def __init__(
        self,
        policy: Any,
        *,
        sampling: Sampling | None = None,
        llm: Any = None,
        seeded: bool = True,
        sleep: bool = False,
        **options: Any,
    ) -> None:
        self.policy = policy
        self.sampling = sampling or Sampling()
        made = llm if llm is not None else make_llm(policy, enable_sleep_mode=sleep, **options)
        self.tokens: Any = VllmTokens(policy, made, seeded, sleep)
        self._counts = {"rows": 0}

    def sample(self, prompts: Prompts, count: int, context: Context, **settings: Any) -> Trajectories:
        """Sample `count` completions of each prompt, as `LanguageEngine.sample`."""
        return self._judged(super().sample(prompts, count, context, **settings), context)

    def resume(
        self, batch: Trajectories, rows: Tensor, positions: Tensor, count: int, context: Context, **settings: Any
    ) -> Trajectories:
        """Sample from the middle of completions, as `LanguageEngine.resume`."""
        return self._judged(super().resume(batch, rows, positions, count, context, **settings), context)

    def respond(self, batch: Trajectories, texts: Any, context: Context, **settings: Any) -> Trajectories:
        """Put a text behind each completion and let the policy go on, as `LanguageEngine.respond`."""
        return self._judged(super().respond(batch, texts, context, **settings), context)

    def converse(self, *given: Any, **settings: Any) -> Trajectories:
        """Refuse: vLLM keeps no cache that this could go on from."""
        raise UserError("converse needs a live cache, which vLLM does not lend: use respond, or backend='auto'")

    def _rows(self, found: Completions, *given: Any) -> Trajectories:
        return super()._rows(found, *given).replace(entropy_old=None)

    def _judged(self, batch: Trajectories, context: Context) -> Trajectories:
        batch = batch.replace(logp_old=context.judge(batch, "logp"))
        record_mismatch(batch, context)
        return batch


def make_llm(policy: Any, **options: Any) -> Any:
    """Return a `vllm.LLM` with the policy's architecture; its weights are arbitrary until they are pushed.

    vLLM is kept in this process, so that weights are handed over without being copied through a pipe.
    """
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    vllm: Any = require("vllm", "vllm")
    dtype = next(policy.model.parameters()).dtype
    settings = {
        "dtype": str(dtype).removeprefix("torch."),
        "load_format": "dummy",
        "logprobs_mode": "processed_logprobs",
        "gpu_memory_utilization": 0.4,
        **options,
    }
    config = copy.deepcopy(policy.model.config)
    # transformers names the architecture only when it writes weights, and vLLM chooses its model by that name.
    config.architectures = [type(policy.model).__name__]
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        policy.tokenizer.save_pretrained(folder)
        return vllm.LLM(model=folder, **settings)


@dataclass
class VllmTokens:
    """The part of `TokenEngine` that vLLM can do: `generate`."""

    policy: Any
    llm: Any
    seeded: bool = True
    sleep: bool = False
    _pushed: Tensor | None = None
    """Checksum of the weights when they were last pushed."""

    @property
    def pad_token_id(self) -> int:
        """Fills rows on the right."""
        return int(self.policy.tokenizer.pad_token_id)

    def push(self) -> bool:
        """Hand the policy's weights to vLLM if they have changed since the last time; return whether they had.

        Adapters are multiplied into the weights. What vLLM has cached of prompts was computed by the old weights: it is
        dropped.
        """
        model = self.policy.model
        present = checksum(model.parameters())
        if self._pushed is not None and torch.equal(present, self._pushed):
            return False
        with torch.no_grad():
            adapted = bool(getattr(self.policy, "_adapted", ()))
            named = merged_state(model) if adapted else dict(model.named_parameters())
            self.llm.collective_rpc(load_into, args=([(name, tensor.detach()) for name, tensor in named.items()],))
        self.llm.reset_prefix_cache()
        self._pushed = present
        return True

    def generate(
        self,
        prefixes: Sequence[Sequence[int]],
        n: int | Sequence[int] = 1,
        sampling: Sampling | None = None,
        *,
        seed: int = 0,
        max_new_tokens: Sequence[int] | None = None,
    ) -> Completions:
        """Complete each prefix `n` times, as `TokenEngine.generate`.

        `logp` and `entropy` of the result are NaN: vLLM does not report them. `logp_sampling` is NaN where it gave none.
        """
        settings = Sampling() if sampling is None else sampling
        counts = [n] * len(prefixes) if isinstance(n, int) else list(n)
        prefix = torch.arange(len(prefixes)).repeat_interleave(torch.tensor(counts))
        total = len(prefix)
        limits = (
            [settings.max_new_tokens] * total if max_new_tokens is None else [int(limit) for limit in max_new_tokens]
        )
        seeds = row_seeds(seed, torch.arange(total))
        # One request a row: a row has its own limit and stream. The prompt's cache is shared among them by vLLM.
        requests = [{"prompt_token_ids": list(prefixes[index])} for index in prefix.tolist()]
        parameters = [
            self.parameters(replace(settings, max_new_tokens=limit), stream if self.seeded else None)
            for limit, stream in zip(limits, seeds.tolist(), strict=True)
        ]
        if self.sleep:
            self.llm.wake_up(tags=["weights"])
        self.push()
        if self.sleep:
            self.llm.wake_up(tags=["kv_cache"])
        outputs = [request.outputs[0] for request in self.llm.generate(requests, parameters, use_tqdm=False)]
        if self.sleep:
            self.llm.sleep(level=2)
            self._pushed = None
        return self._completions(outputs, settings, prefix, seeds)

    def open(self, *given: Any, **settings: Any) -> Any:
        """Refuse: there is no live cache."""
        raise UserError("a live session needs the engine's own cache: use backend='auto' instead of vllm")

    def parameters(self, sampling: Sampling, seed: int | None) -> Any:
        """Return `vllm.SamplingParams` for one row."""
        vllm: Any = require("vllm", "vllm")
        stops = sorted({*self.policy.stop_tokens, *sampling.stop_tokens})
        return vllm.SamplingParams(
            n=1,
            temperature=0.0 if sampling.greedy else sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            max_tokens=sampling.max_new_tokens,
            stop=list(sampling.stop_strings) or None,
            stop_token_ids=stops,
            # The policy says what ends a completion, not the configuration that vLLM read.
            ignore_eos=True,
            logprobs=0,
            # Generators take 64 bits; the sign is dropped for those who want none.
            seed=None if seed is None else seed % 2**63,
            detokenize=bool(sampling.stop_strings),
        )

    def _completions(self, outputs: Sequence[Any], sampling: Sampling, prefix: Tensor, seeds: Tensor) -> Completions:
        device = next(self.policy.model.parameters()).device
        length = torch.tensor([len(output.token_ids) for output in outputs], dtype=torch.int64)
        width = int(length.max()) if len(outputs) else 0
        inside = torch.arange(width) < length.unsqueeze(-1)
        tokens = torch.full((len(outputs), width), self.pad_token_id)
        tokens[inside] = torch.tensor([token for output in outputs for token in output.token_ids], dtype=torch.int64)
        drawn = torch.zeros(len(outputs), width)
        if not sampling.greedy:
            drawn[inside] = torch.tensor([number for output in outputs for number in _logps(output)])
        unknown = torch.full((len(outputs), width), torch.nan, device=device)
        return Completions(
            tokens=tokens.to(device),
            length=length.to(device),
            logp=unknown,
            logp_sampling=drawn.to(device),
            logp_raw=unknown,
            entropy=unknown,
            forced=torch.zeros(len(outputs), width, dtype=torch.bool, device=device),
            finished=torch.tensor(
                [output.finish_reason == "stop" for output in outputs], dtype=torch.bool, device=device
            ),
            prefix=prefix.to(device),
            seed=seeds.to(device),
        )


_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def checksum(tensors: Iterable[Tensor]) -> Tensor:
    """Return the sum of each tensor's bits, read as integers: [tensors] int64.

    One pass over the weights. Their version counters would cost nothing, but fused optimisers do not move them.
    """
    return torch.stack([tensor.view(_BITS[tensor.element_size()]).sum(dtype=torch.int64) for tensor in tensors])


def load_into(worker: Any, weights: list[tuple[str, Tensor]]) -> None:
    """Run in vLLM's worker: copy named weights into its model, which joins and splits them as its own layers need."""
    worker.model_runner.model.load_weights(weights)


def _logps(output: Any) -> list[float]:
    """Return the reported log-probability of each drawn token; NaN where there is none."""
    if output.logprobs is None:
        return [torch.nan] * len(output.token_ids)
    found = []
    for token, reported in zip(output.token_ids, output.logprobs, strict=True):
        entry = reported.get(token)
        found.append(torch.nan if entry is None or entry.logprob is None else float(entry.logprob))
    return found
