"""Tokens, time, memory and endpoint calls of the nodes that are still to be built, for `stage=plan`."""
