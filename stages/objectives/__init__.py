"""Each objective as a TRL trainer with our seams, and what is measured before its first step. A new one goes here."""
