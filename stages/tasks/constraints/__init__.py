"""Kinds of constraint on an open answer: a module for every area."""
