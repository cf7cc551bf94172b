"""Kinds of constraint on an open answer, one module per area."""
