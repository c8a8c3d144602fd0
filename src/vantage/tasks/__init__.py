"""Tasks: prompts or initial states, the scoring of outcomes, and the evaluation of policies."""
