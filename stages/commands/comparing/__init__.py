"""The parts of `stage=compare`: read the evaluations and trainings of the store, and compare them."""
