"""Endpoints: models at OpenAI-compatible servers, with rate limits, a budget, and a cache of replies."""
