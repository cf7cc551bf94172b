"""The stages of the pipeline, one file each, and the packages they are made of. Start in `pipeline/graph.py`."""
