"""Tree search: small exact games, batched trees stored as arrays, and a budget in simulations."""
