"""What is learnt from, and how often."""
