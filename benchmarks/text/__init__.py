"""The parts of ``distil_text.py``."""
