"""The audit of a data set: faults of a single row, of its pair of answers, and of rows compared with other rows."""
