"""The parts of `stage=audit`: audit the rows of a source, and measure how diverse they are."""
