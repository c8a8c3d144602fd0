"""Tree search and learning from it."""
