"""The command line: with run.py, all that knows Hydra."""
