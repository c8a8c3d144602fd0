"""Objectives: losses of the policy from log-probabilities and advantages."""
