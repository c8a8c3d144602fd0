"""Updates of the policy: gradient steps, trust regions, learning-rate schedules, target networks."""
