"""Task families, one module per kind of task. `stages/data/tasks.py` says what a family is."""
