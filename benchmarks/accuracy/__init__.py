"""The comparison of methods on many tasks: what `compare.py` runs and reports."""
