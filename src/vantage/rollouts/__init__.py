"""Rollouts: engines and plans that sample rows from the policy in a task."""
