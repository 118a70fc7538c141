"""
From images to sounds (needs ``--data-dir``)
============================================

A row is a two-digit number, written and spoken. The teacher reads images, the
student hears sounds. It needs no more than the teacher's embeddings of the same
rows: what they are computed from does not matter. The class is whether the
number is divisible by three.

This page is not run when the documentation is built: it needs the folder
``spoken_digits``, the recordings of the Free Spoken Digit Dataset. On one
machine ``python docs/gallery/images_to_sounds.py --data-dir FOLDER`` printed

.. literalinclude:: /gallery/images_to_sounds.txt
   :language: text
"""

# %%
import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
from scipy.signal import spectrogram
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lelp_sklearn import (
    EmbeddingExtractor,
    LELPProjector,
    LELPStudentClassifier,
)

parser = argparse.ArgumentParser()
parser.add_argument("--data-dir", type=Path, required=True)
path = parser.parse_args().data_dir / "spoken_digits" / "recordings.npz"
recordings = np.load(path)


def pool(samples):
    """Return the loudness in 16 bands of frequency at 12 times (192,)."""
    _, _, power = spectrogram(samples.astype(float), nperseg=256, noverlap=128)
    bands = np.array_split(np.log(power[:96] + 1), 16)
    by_band = np.stack([band.mean(axis=0) for band in bands])
    times = np.linspace(0, by_band.shape[1] - 1, 12).round().astype(int)
    return by_band[:, times].ravel()


samples = recordings["samples"]
sounds = np.stack(
    [pool(samples[i:j]) for i, j in pairwise(recordings["offsets"])]
)
images, written = load_digits(return_X_y=True)
# A fifth of the images, and ten of fifty recordings of each digit and speaker,
# are for the test.
image_is_test = np.arange(len(images)) % 5 == 0
sound_is_test = recordings["take"] < 10


def draw(n_rows, seed, is_test):
    """Return images, sounds and numbers, which are all that a pair shares."""
    rng = np.random.RandomState(seed)
    number = rng.randint(100, size=n_rows)
    parts = ([], [])
    for digit in (number // 10, number % 10):
        for part, rows, label, held_out in (
            (parts[0], images / 16, written, image_is_test),
            (parts[1], sounds, recordings["digit"], sound_is_test),
        ):
            usable = held_out == is_test
            pools = [np.flatnonzero(usable & (label == d)) for d in range(10)]
            part.append(rows[[rng.choice(pools[d]) for d in digit]])
    return *map(np.hstack, parts), number


# %%
# The teacher learns from images, and is not asked about sounds.
seen, _, number = draw(8_000, 0, is_test=False)
teacher = MLPClassifier((256, 64), early_stopping=True, random_state=0)
teacher.fit(seen, number % 3 == 0)
seen, heard, number = draw(2_000, 1, is_test=False)
seen_test, heard_test, number_test = draw(4_000, 2, is_test=True)
y, y_test = number % 3 == 0, number_test % 3 == 0
print(f"teacher, of images: {teacher.score(seen_test, y_test):.3f}")
extractor = EmbeddingExtractor(teacher)
E = extractor.fit_transform(seen)

# %%
# The student's rows are sounds, the embeddings those of the images.
for name, n_subclasses in {"one subclass": 1, "20 subclasses": 20}.items():
    student = LELPStudentClassifier(
        module_params={"hidden_layer_sizes": (32,)},
        projector=LELPProjector(n_subclasses, head=extractor.head_),
        random_state=0,
    )
    model = make_pipeline(StandardScaler(), student)
    model.fit(heard, y, lelpstudentclassifier__teacher_embeddings=E)
    print(f"student, of sounds, {name}: {model.score(heard_test, y_test):.3f}")
