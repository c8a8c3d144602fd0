"""Compression: pruning of networks, their prunable units, statistics of their layers, and their sizes."""
