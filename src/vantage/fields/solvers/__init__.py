"""Solvers: problems with a known optimum, and the interface of methods that solve them."""
