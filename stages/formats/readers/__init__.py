"""Readers of rows from files (JSON, tables, plain text, archives), without a notion of conversations."""
