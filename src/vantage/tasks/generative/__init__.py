"""Flow matching and masked diffusion: models that draw a sample in many small steps."""
