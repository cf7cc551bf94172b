"""What measures, by `python -m tests.bench.NAME`, in a process that is told what run.py's is before it loads torch."""

from stages.hardware import process

process.prepare()
