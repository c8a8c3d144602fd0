"""Methods that learn from recorded transitions alone."""
