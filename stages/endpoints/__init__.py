"""Endpoints: models at servers of others, asked within limits, at a known price, and once."""
