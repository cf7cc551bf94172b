"""Labelers turn candidates into judgements."""
