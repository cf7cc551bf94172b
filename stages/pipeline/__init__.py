"""The graph of the whole pipeline, and how a target is built from it. Start reading in `graph.py`."""
