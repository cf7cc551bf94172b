"""What this machine has, and what a node will need of it. Knows no torch."""
