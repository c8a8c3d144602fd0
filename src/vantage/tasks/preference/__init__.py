"""Preferences between bandit arms: known rewards, or games with a known equilibrium."""
