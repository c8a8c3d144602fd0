"""Runs of fields without a rollout loop, and runs that measure something else than training; arenas name them."""
