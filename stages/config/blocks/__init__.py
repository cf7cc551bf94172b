"""The blocks of the configuration, by room. `stages/config/schema.py` puts them together."""
