"""Labelers: what turns candidates into judgements."""
