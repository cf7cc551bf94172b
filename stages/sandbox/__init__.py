"""Templates and YAML of others, rendered and read in a process of its own that has bounds."""
