"""Run a teacher: embeddings and logits, and a file of embeddings.

`runner.py` tells the kinds of torch models apart, `fitted_sklearn.py` the kinds of
classifiers of scikit-learn. `sklearn_teachers.py` fits any teacher with `fit` and
`transform`. A new kind of teacher belongs in one of them.
"""
