"""Hard labels, vanilla distillation and LELP, all by the public API."""

from benchmarks.distillation.methods.base import CONSTANT, EarlierLayerMethod, Method

METHODS = {
    "hard labels": Method({"n_subclasses": 1}, labels_only=True),
    "vanilla KD": Method({"n_subclasses": 1}),
    "LELP as published": Method({"splitter": "pca", "rotation": "random"}, CONSTANT),
    "LELP, library defaults": Method(),
    "PCA, annealed": Method({"splitter": "pca"}),
    "hard k-means, annealed": Method(
        {"splitter": "kmeans", "subclass_temperature": 0.0}
    ),
}
RANDOM = {
    "random directions": Method({"splitter": "random"}, CONSTANT),
    "random directions, annealed": Method({"splitter": "random"}),
}


def of_earlier_layer(name: str) -> str:
    """Return the name of a method that uses an earlier layer."""
    return f"{name}, earlier layer"


def on_earlier_layer(method: Method) -> EarlierLayerMethod:
    """Return the same method, given the embeddings of an earlier layer."""
    return EarlierLayerMethod(**vars(method))
