"""Divergences, entropies and constraints beside the policy loss."""
