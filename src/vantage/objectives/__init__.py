"""Log-probabilities and advantages to a loss."""
