"""What every objective shares: arguments, batches, memory, checkpoints, adapters, publishing."""
