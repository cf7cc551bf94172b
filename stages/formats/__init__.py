"""Formats: parsers of data files into conversations and preferences. A new data format goes here."""
