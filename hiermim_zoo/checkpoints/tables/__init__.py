"""One table for every layout in which weights are published."""
