"""Interchangeable ways to complete prompts. A new sampler goes here."""
