"""Method pages of the family `objectives`."""
