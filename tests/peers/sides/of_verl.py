"""verl's functions (verl.trainer.ppo.core_algos)."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from serve import serve
from torch import Tensor
from verl.trainer.ppo import core_algos
from verl.workers.config import ActorConfig


def _config(**settings: Any) -> ActorConfig:
    return ActorConfig(strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, use_dynamic_bsz=False, **settings)


def advantage(kind: str, score: Tensor, mask: Tensor, group: Tensor, gamma: float = 1.0) -> dict[str, Tensor]:
    """Advantage of an estimator; the score stands at each row's last token."""
    rewards = torch.zeros(mask.shape, dtype=score.dtype)
    rewards[torch.arange(len(score)), mask.sum(1).long() - 1] = score
    estimator = core_algos.get_adv_estimator_fn(kind)
    found, _ = estimator(
        token_level_rewards=rewards,
        response_mask=mask.to(score.dtype),
        index=np.asarray(group),
        config=SimpleNamespace(gamma=gamma),
    )
    return {"advantage": found}


def policy_loss(
    kind: str,
    mode: str,
    logp: Tensor,
    old: Tensor,
    advantage: Tensor,
    mask: Tensor,
    low: float,
    high: float,
    dual: float,
) -> dict[str, Tensor]:
    """Loss and its gradient by the log-probabilities."""
    logp.requires_grad_()
    config = _config(clip_ratio=low, clip_ratio_low=low, clip_ratio_high=high, clip_ratio_c=dual)
    loss, _ = core_algos.get_policy_loss_fn(kind)(
        old_log_prob=old,
        log_prob=logp,
        advantages=advantage,
        response_mask=mask.to(logp.dtype),
        loss_agg_mode=mode,
        config=config,
    )
    loss.backward()
    return {"loss": loss, "grad": logp.grad}


def kl(kind: str, logp: Tensor, ref: Tensor) -> dict[str, Tensor]:
    """Estimate of the divergence per token, and the gradient of its sum."""
    logp.requires_grad_()
    found = core_algos.kl_penalty(logp, ref, kind)
    found.sum().backward()
    return {"kl": found, "grad": logp.grad}


serve({"advantage": advantage, "policy_loss": policy_loss, "kl": kl})
