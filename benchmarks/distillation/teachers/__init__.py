"""Teachers, a file each."""
