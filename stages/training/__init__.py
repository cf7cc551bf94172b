"""Parts that every objective shares: arguments, batches, memory, checkpoints, adapters, publishing."""
