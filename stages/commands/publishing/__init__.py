"""The parts of `stage=export export.format=dataset`: the tables and their card."""
