"""Differences between the folders of models, key by key: settings, tokenizer, template and weights. No model is run."""
