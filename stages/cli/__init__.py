"""The command line. Only this package and run.py use Hydra."""
