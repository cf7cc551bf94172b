"""Folders that may be removed: each holds a command with its settings and words, and nothing imports it.

`stages/config/commands.py` finds the record in a folder's `__init__.py`, which must load nothing heavy."""
