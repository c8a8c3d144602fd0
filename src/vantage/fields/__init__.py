"""Runtimes of fields without a rollout loop."""
