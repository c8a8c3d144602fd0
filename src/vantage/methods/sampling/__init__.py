"""Method pages of the family `sampling`."""
