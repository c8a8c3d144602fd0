"""Tree search: small exact games, trees held as arrays and searched in batch, and a budget in simulations."""
