"""Compiled loops over rows, and the same loops in plain NumPy."""
