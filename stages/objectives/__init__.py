"""A TRL trainer with our seams for each objective, and what it checks before its first step. A new one goes here."""
