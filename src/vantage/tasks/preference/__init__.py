"""Preferences between arms: bandits with a known reward, and games with a known equilibrium."""
