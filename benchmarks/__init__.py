"""Benchmarks of the library: see README.md."""
