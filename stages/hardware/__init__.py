"""This machine's resources, and estimates of the resources that a node needs."""
