"""Samplers: interchangeable ways to complete prompts. Add a sampler as a file in this folder."""
