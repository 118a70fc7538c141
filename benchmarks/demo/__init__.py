"""The demo: a teacher of two-digit numbers, and every method."""
