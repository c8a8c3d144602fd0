"""Terms of the loss beside the objective: divergences, entropies and constraints."""
