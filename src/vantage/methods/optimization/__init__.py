"""Optimisation: solvers of problems in few or no decisions, by duals, projections and fixed points."""
