"""Offline reinforcement learning: recorded transitions, and the worlds that they were recorded in."""
