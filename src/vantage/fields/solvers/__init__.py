"""Solvers: problems with a known optimum, and what is asked of a method that solves them."""
