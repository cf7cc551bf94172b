"""What `stage=plan` is made of: how long and how large the nodes would be that are missing."""
