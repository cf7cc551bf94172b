"""Checks before the first node is built, without Hydra, torch or any server: settings that cannot work, and missing
files, packages and ports."""
