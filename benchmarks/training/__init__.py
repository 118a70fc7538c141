"""The student beside a hand-written loop and skorch."""
