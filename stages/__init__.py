"""Plumbline's stages: from a pretrained base to an aligned model, and whether it helped."""
