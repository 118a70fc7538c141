"""The exported student."""
