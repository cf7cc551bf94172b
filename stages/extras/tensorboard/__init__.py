"""`tracker=tensorboard`: runs in TensorBoard."""
