"""TRL's own pair losses, called on log-probabilities. Rows 2 i are chosen, 2 i + 1 rejected."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor


def trl_dpo_loss(logp: Tensor, ref: Tensor, mask: Tensor, *, beta: float, kind: str = "sigmoid") -> Tensor:
    """Return the loss of TRL's DPOTrainer on log-probabilities [N, T]."""
    trainer: Any = pytest.importorskip("trl.trainer.dpo_trainer").DPOTrainer
    order = torch.cat([torch.arange(0, len(mask), 2), torch.arange(1, len(mask), 2)])

    def model(values: Tensor) -> Any:
        judged = torch.where(mask, values, 0.0)[order]
        zeros = torch.zeros_like(judged)
        outputs = SimpleNamespace(
            log_probs=judged, entropy=zeros.detach(), mean_logits=zeros.detach(), is_top1=zeros.bool()
        )
        return lambda **inputs: outputs

    same = SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x, device=torch.device("cpu"))
    policy = model(logp)
    own = SimpleNamespace(
        model=SimpleNamespace(training=True, is_gradient_checkpointing=False),
        ref_model=model(ref),
        accelerator=same,
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        f_divergence_type="reverse_kl",
        beta=beta,
        loss_types=[kind],
        loss_weights=[1.0],
        label_smoothing=0.0,
        use_weighting=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    shown = torch.cat([torch.zeros(len(mask), 1, dtype=torch.bool), mask], 1)[order]
    sums = torch.where(mask, ref, 0.0).sum(-1)
    inputs = {
        "input_ids": torch.zeros(shown.shape, dtype=torch.long),
        "attention_mask": torch.ones(shown.shape, dtype=torch.long),
        "completion_mask": shown.long(),
        "ref_chosen_logps": sums[::2],
        "ref_rejected_logps": sums[1::2],
    }
    found: Tensor = trainer._compute_loss(own, policy, inputs, False)
    return found


def trl_simpo_loss(logp: Tensor, mask: Tensor, *, beta: float, gamma: float, smoothing: float = 0.0) -> Tensor:
    """Return the SimPO loss of TRL's CPOTrainer."""
    trainer: Any = pytest.importorskip("trl.experimental.cpo.cpo_trainer").CPOTrainer
    means = torch.where(mask, logp, 0.0).sum(-1) / mask.sum(-1)
    own = SimpleNamespace(
        alpha=0.0,
        beta=beta,
        loss_type="simpo",
        simpo_gamma=gamma,
        label_smoothing=smoothing,
        accelerator=SimpleNamespace(device=torch.device("cpu")),
    )
    losses: Tensor = trainer.cpo_loss(own, means[::2], means[1::2])[0]
    return losses.mean()
