"""Integrations with other libraries: vLLM and Weights & Biases."""
