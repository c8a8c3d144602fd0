"""Methods that learn from preferences between pairs."""
