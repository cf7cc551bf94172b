"""Diagnosis of a run that did not help: measured values against their normal ranges."""
