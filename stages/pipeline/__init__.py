"""The graph of the whole pipeline (start reading in `graph.py`), and the build of its missing nodes (`build.py`)."""
