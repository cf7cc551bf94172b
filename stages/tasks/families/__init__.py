"""Task families, a module for each group of kinds. `tasks/generate.py` imports whatever lies here."""
