"""Run a teacher: embeddings and logits, and a file of embeddings.

`runner.py` tells the kinds of torch models apart. `sklearn_teachers.py` fits any
teacher with `fit` and `transform`, and tells the kinds of classifiers of scikit-learn
apart.
"""
