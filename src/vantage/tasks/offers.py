"""Vocabulary of what methods need and tasks offer: components declare `needs`, the tasks' registry `offers`."""

from __future__ import annotations

from collections.abc import Mapping

WORDS: Mapping[str, str] = {
    # engines
    "episodes": "an engine that samples whole episodes",
    "streams": "an engine that continues step by step across the ends of episodes",
    "prefixes": "an engine that resumes from the middle of a row",
    "turns": "conversations in which the environment answers",
    "simulator": "a differentiable simulator",
    "post-decision": "post-decision states",
    "finite-prompts": "a fixed set of prompts",
    # outcomes
    "rewards": "named rewards of whole rows",
    "unit-scores": "scores from 0 to 1",
    # stored data
    "demonstrations": "worked solutions",
    "pairs": "stored preference pairs",
    "transitions": "recorded transitions",
    # policies
    "text": "a language model",
    "masked": "a masked diffusion model",
    "flow": "a flow model",
    "tours": "a policy that builds tours",
    "masks": "a policy over pruning masks",
    "continuous": "continuous actions",
    "logits": "a policy with logits of every decision",
    "divergence": "a policy whose distributions have a divergence",
    "critic": "a policy with a critic",
    "heads": "a policy that accepts further value heads",
    "hidden": "a policy that gives its hidden states",
}
"""Word -> the need, as error messages name it."""

_EPISODES = frozenset({"episodes"})
_TEXTS = _EPISODES | {
    "streams", "text", "critic", "hidden", "logits", "rewards", "demonstrations", "unit-scores", "finite-prompts",
}  # fmt: skip
LANGUAGE = _TEXTS | {"prefixes"}
"""Offers of problems with a verifiable answer, generated or read from the user's file."""
CONVERSATIONS = _TEXTS | {"turns"}
"""Offers of such problems with a tool."""
_ARMS = _EPISODES | {"streams", "critic", "logits", "rewards", "pairs", "finite-prompts"}
_DISCRETE = _EPISODES | {"streams", "critic", "hidden", "divergence", "heads"}
_CONTINUOUS = _DISCRETE | {"continuous"}
_ORDERS = _DISCRETE | {"post-decision"}
_TOURS = _EPISODES | {"streams", "critic", "logits", "tours"}
_SAMPLES = _EPISODES | {"flow", "prefixes", "rewards"}
_MASKS = _EPISODES | {"logits", "masks", "rewards"}

OFFERS: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(("addition", "countdown", "counting", "drafted", "hinted", "modular", "sorting"), LANGUAGE),
    "calculator": CONVERSATIONS,
    "padded-sorting": LANGUAGE | {"pairs"},
    "preference": _ARMS,
    "game": _ARMS | {"unit-scores"},
    "offline": frozenset({"transitions"}),
    **dict.fromkeys(("cartpole", "acrobot", "mountaincar", "grid"), _DISCRETE),
    **dict.fromkeys(("pendulum", "hopper", "halfcheetah", "two-goals", "detour"), _CONTINUOUS),
    "gym": _CONTINUOUS,  # discrete actions are found out when the environment is made
    "lake": _ORDERS,
    "lot-sizing": _ORDERS,
    "inventory": _ORDERS | {"simulator"},
    **dict.fromkeys(("prune-digits", "prune-text"), _MASKS),
    **dict.fromkeys(("tsp", "cvrp"), _TOURS),
    "flow2d": _SAMPLES,
    "digits": _SAMPLES | {"unit-scores", "finite-prompts"},
    "masked": _EPISODES | {"masked", "rewards", "unit-scores", "finite-prompts"},
}
"""Task -> its offers with its default policy."""
