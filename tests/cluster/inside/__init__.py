"""Programs that the suite runs in pods, with nothing but Python's standard library: each file stands alone."""
