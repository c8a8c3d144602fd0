"""Rewards: verifiers, and components that shape and mix named rewards."""
