"""Method pages of the family `rewards`."""
