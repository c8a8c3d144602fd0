"""Vantage inside other trainers."""
