"""Scores, verifiers, and what shapes and mixes them."""
