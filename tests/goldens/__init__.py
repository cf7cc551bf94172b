"""What the project computed before a change, and a command that compares it with today: `python -m tests.goldens`."""

import tests.conftest  # noqa: F401, for its environment: offline, without W&B and GPU, on one thread
