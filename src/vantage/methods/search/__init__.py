"""Tree search and what is learnt from it."""
