"""Method pages of the family `credit`."""
