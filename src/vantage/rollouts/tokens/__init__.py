"""Generation of tokens from causal language models."""

from vantage.rollouts.tokens.completions import Completions
from vantage.rollouts.tokens.engine import TokenEngine
from vantage.rollouts.tokens.sampling import Sampling
from vantage.rollouts.tokens.session import Session

__all__ = ["Completions", "Sampling", "Session", "TokenEngine"]
