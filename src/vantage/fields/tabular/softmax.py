"""Policy gradients of a tabular softmax policy with separate parameters at every step: sampled and exact."""

from __future__ import annotations

import torch
from torch import Tensor

from vantage.fields.tabular.episodes import Episodes
from vantage.fields.tabular.mdp import MDP, backup


def reinforce(policy: Tensor, seen: Episodes) -> Tensor:
    """Return the plain REINFORCE estimate [R, H, S, A] of the gradient with respect to the logits; 0 before `seen.step`.

        (1/K) sum_i 1{s_h^i = s} (1{a_h^i = a} - pi_h(a | s)) G_h^i        G_h the reward from step h on, no baseline

    Its expectation is `exact_gradient` where all of the episodes' steps follow the policy from their start distribution.

    Args:
        policy: [R, H, S, A].
        seen: episodes of it.
    """
    count, actions = seen.state.shape[1], policy.shape[-1]
    place = (seen.state * actions + seen.action).movedim(1, 2)
    earned = torch.zeros_like(policy.flatten(-2))
    earned[:, seen.step :].scatter_add_(2, place, seen.to_go.movedim(1, 2) / count)
    earned = earned.view(policy.shape)
    return earned - earned.sum(-1, keepdim=True) * policy


def exact_gradient(mdp: MDP, policy: Tensor, law: Tensor) -> Tensor:
    """Return law_h(s) pi_h(a | s) A_h(s, a) [..., H, S, A], the gradient with respect to the logits.

    With law = `occupancy(...)` of the policy it is that of the return, for all steps together; with any other law each step's
    slice is the gradient of law_h . V_h with the later steps fixed.

    Args:
        mdp: the MDP.
        policy: [..., H, S, A].
        law: distribution of the state at each step [..., H, S].
    """
    q, v = backup(mdp.transition, mdp.reward, policy)
    return law.unsqueeze(-1) * policy * (q - v.unsqueeze(-1))
