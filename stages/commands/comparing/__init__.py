"""What `stage=compare` is made of: evaluations and trainings of the store, read back and held against each other."""
