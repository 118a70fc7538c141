"""The comparison on text, and what subclasses of texts are."""
