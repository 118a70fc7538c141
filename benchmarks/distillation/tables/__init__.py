"""Tables of the comparison, a file each with its ``TABLE``.

A further table is a further file, named here.
"""

from benchmarks.distillation.tables import (
    augmented,
    candidates,
    classes,
    epochs,
    labels,
    layers,
    methods,
    mixtures,
    modalities,
    paper,
    peers,
    photos,
    questions,
)

TABLES = {
    "methods": methods.TABLE,
    "peers": peers.TABLE,
    "questions": questions.TABLE,
    "candidates": candidates.TABLE,
    "layers": layers.TABLE,
    "photos": photos.TABLE,
    "mixtures": mixtures.TABLE,
    "epochs": epochs.TABLE,
    "labels": labels.TABLE,
    "augmented": augmented.TABLE,
    "paper": paper.TABLE,
    "classes": classes.TABLE,
    "modalities": modalities.TABLE,
}
