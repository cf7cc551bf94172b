"""The blocks of the configuration, by package. `stages/config/schema.py` puts them together."""
