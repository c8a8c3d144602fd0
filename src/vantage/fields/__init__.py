"""Runtimes of the fields that have no rollout loop."""
