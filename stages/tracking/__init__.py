"""Experiment tracking, a file for each tracker."""
