"""Tests of the configuration: its keys, their limits, and the arguments for TRL."""
