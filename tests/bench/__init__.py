"""Benchmarks, each run by `python -m tests.bench.NAME` with the same thread settings as run.py."""

from stages.hardware import process

process.prepare()
