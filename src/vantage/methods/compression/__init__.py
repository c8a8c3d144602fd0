"""Compression: networks pruned by formulas and by policies."""
