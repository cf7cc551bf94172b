"""A model and its tokenizer: loading, scoring, forwards, the template contract, cards, file formats."""
