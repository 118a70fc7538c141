"""Subclasses and their soft labels from embeddings; NumPy in, NumPy out."""
