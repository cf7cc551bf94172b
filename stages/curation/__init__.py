"""What data must be to be trained on."""
