"""The stages of the pipeline, one file each, and the rooms they are made of. Start reading in `pipeline/graph.py`."""
