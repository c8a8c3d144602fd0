"""Modules that run in the sandbox's own process: standard library only, imported without the rest of the package."""
