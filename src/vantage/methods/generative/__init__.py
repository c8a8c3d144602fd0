"""Generative models: flow matching and masked diffusion, fine-tuned by rewards on their samples."""
