"""Tests of the extras, a folder for each."""
