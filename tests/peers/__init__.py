"""Peer libraries' own losses, called on tensors. Each test that uses one is marked `peers` and skipped without it."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor


def trl_loss(
    kind: str, logp: Tensor, old: Tensor, advantage: Tensor, mask: Tensor, *, low: float, high: float, level: str = "token",
    beta: float = 0.0, ref: Tensor | None = None, max_length: int = 0,
) -> Tensor:  # fmt: skip
    """Return the loss that TRL's GRPOTrainer computes from these log-probabilities [N, T] and advantages [N]."""
    trainer: Any = pytest.importorskip("trl.trainer.grpo_trainer").GRPOTrainer
    own = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (logp, torch.zeros_like(logp), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=level,
        beta=beta,
        loss_type=kind,
        epsilon_low=low,
        epsilon_high=high,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        use_vllm=False,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        max_completion_length=max_length or logp.shape[1],
        _entropy_bonus_enabled=False,
        use_adaptive_entropy=False,
        accelerator=SimpleNamespace(
            reduce=lambda x, reduction: x,
            gather=lambda x: x,
            gather_for_metrics=lambda x: x,
            num_processes=1,
            sync_gradients=True,
        ),
        _metrics={"train": defaultdict(list)},
        tools=None,
        environments=None,
    )
    count = logp.shape[0]
    inputs = {
        "prompt_ids": torch.zeros(count, 1, dtype=torch.long),
        "prompt_mask": torch.ones(count, 1, dtype=torch.long),
        "completion_ids": torch.zeros(logp.shape, dtype=torch.long),
        "completion_mask": mask.long(),
        "advantages": advantage,
        "old_per_token_logps": old,
        "num_items_in_batch": mask.sum(),
    }
    if ref is not None:
        inputs["ref_per_token_logps"] = ref
    return trainer._compute_loss(own, None, inputs)


def trl_rloo_loss(logp: Tensor, old: Tensor, advantage: Tensor, mask: Tensor, *, low: float, high: float) -> Tensor:
    """Return the loss that TRL's RLOOTrainer computes."""
    trainer: Any = pytest.importorskip("trl.trainer.rloo_trainer").RLOOTrainer
    own = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (logp, torch.zeros_like(logp), None),
        aux_loss_enabled=False,
        epsilon_low=low,
        epsilon_high=high,
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(reduce=lambda x, reduction: x, gather=lambda x: x),
        _metrics={"train": defaultdict(list)},
    )
    count = logp.shape[0]
    inputs = {
        "prompt_ids": torch.zeros(count, 1, dtype=torch.long),
        "prompt_mask": torch.ones(count, 1, dtype=torch.long),
        "completion_ids": torch.zeros(logp.shape, dtype=torch.long),
        "completion_mask": mask.long(),
        "advantages": advantage,
        "old_logps": (old * mask).sum(1),
    }
    return trainer._compute_loss(own, None, inputs)
