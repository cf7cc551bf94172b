"""Task families, a module for each group of kinds. `tasks.known_families` imports whatever lies here."""
