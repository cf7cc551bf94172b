"""Checks before the first node is built: settings that cannot work, and missing files, packages and ports."""
