"""Reasoning: language models with verifiable rewards; the GRPO family, credit, sampling and rewards."""
