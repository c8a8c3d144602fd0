"""Selections: the rows and decisions that enter the loss, and their weights."""
