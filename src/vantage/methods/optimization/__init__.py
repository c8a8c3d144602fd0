"""Optimisation: solvers of problems with few or no decisions, by duals, projections and fixed points."""
