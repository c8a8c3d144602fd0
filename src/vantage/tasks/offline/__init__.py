"""Offline reinforcement learning: recorded transitions, and the environments in which they were recorded."""
