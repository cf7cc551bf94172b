"""Task families, one module per group of kinds. `tasks/generator.py` imports every module of this folder."""
