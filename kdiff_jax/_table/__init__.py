"""A sampler as a table: rows, schedules, and one file a method."""
