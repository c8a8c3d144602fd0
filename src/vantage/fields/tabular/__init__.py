"""Finite-horizon tabular MDPs: exact values, occupancies and regret, and a protocol of episodes for learners."""
