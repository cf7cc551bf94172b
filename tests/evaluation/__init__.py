"""The evaluation's parts."""
