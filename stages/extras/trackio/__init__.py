"""`tracker=trackio`: runs in trackio."""
