"""The run of a training stage in several processes, on one machine or several."""
