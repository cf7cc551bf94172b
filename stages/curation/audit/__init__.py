"""The audit of a data set: what is wrong with a row, alone, beside its other answer, or among other rows."""
