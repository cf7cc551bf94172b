"""What `label=human` is made of: the questions, what people said, the page that they see, and its server."""
