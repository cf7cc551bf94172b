"""What `stage=export export.format=dataset` is made of: the tables, and the card beside them."""
