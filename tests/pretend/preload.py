"""Everything that tests of the pretended accelerator import, in the server whose forks they are."""

import gc

from stages import answer, dpo, eval, reference, reward, sample, sft  # noqa: F401
from stages.hardware import process
from tests.pretend import device

process.prepare()
device.library()
gc.collect()
gc.freeze()
