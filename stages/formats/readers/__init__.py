"""Files become rows: bytes, archives, JSON, tables and lines. Knows no conversation."""
