"""Task families, a module for each group of kinds. `tasks/generator.py` imports whatever lies here."""
