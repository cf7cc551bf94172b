"""Why did it not help? What was measured of a run, against what is normal."""
