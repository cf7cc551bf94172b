"""What `stage=audit` is made of: the rows of every source, read and looked at, and what was found told by code."""
