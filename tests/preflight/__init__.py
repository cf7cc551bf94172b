"""Tests of what is told before anything is built."""
