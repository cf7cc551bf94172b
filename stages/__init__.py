"""The stages of the pipeline, and the parts they are made of. `pipeline.py` is the page to start from."""

import logging

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns, wherever it is installed, of kernels on the hub
