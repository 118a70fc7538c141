"""Run a teacher: embeddings and logits, and a file of embeddings.

`runner.py` tells the kinds of torch models apart, `sklearn_teachers.py` calls
transformers of scikit-learn. A new kind of teacher belongs in one of them.
"""
