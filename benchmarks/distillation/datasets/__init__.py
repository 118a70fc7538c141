"""Data sets of the comparison, a file each."""
