"""Tests of config/: the keys, their limits, and what TRL may be told."""
