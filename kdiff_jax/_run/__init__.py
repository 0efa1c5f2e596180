"""One step, and a whole run."""
