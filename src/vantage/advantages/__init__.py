"""Advantages, and the value functions that they use."""
