"""Other people's files become conversations and preferences. A new data format goes here."""
