"""How the policy changes: gradient steps, trust regions, and what stands between gradient and optimiser."""
