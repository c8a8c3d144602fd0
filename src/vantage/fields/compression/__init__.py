"""Compression: networks made smaller, their prunable units, statistics of their layers, and what is left of them."""
