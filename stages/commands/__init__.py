"""The words of `stage=` that build nothing: they look at the store, or use what is in it."""
