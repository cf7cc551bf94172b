"""Folders that may be removed, with their settings, options and words. Nothing imports them.

`stages/config/extras.py` finds the record in a folder's `__init__.py`, which must load nothing heavy."""
