"""
Text: from a teacher of messages to one ONNX file
=================================================

Messages to a shop ask for one of 36 things, and each goes to one of two teams.
The teacher is a network on tf-idf; the student is linear, and becomes one file
that takes raw text. The messages are made of templates, so that this page needs
no data, and so that subclasses matter: :doc:`text_to_onnx` has real messages,
few labels and a sentence encoder, and a smaller gain.
"""

# %%
# A team has half of the pairs of an action and a thing, at random. So no word
# tells the team, only pairs of words.
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import onnxruntime
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline

import lelp_sklearn.onnx
from lelp_sklearn import (
    EmbeddingExtractor,
    LELPProjector,
    LELPStudentClassifier,
    SubclassDisplay,
)

ACTIONS = (
    "cancel stop|change edit|find locate|pay settle|renew extend|return send"
)
THINGS = (
    "order purchase|invoice bill|parcel package|account profile|card|voucher"
)
OPENINGS = "please|can you|I want to|how do I|help me to|it is time to"
ENDINGS = "today|thank you|as soon as possible|I bought in May|now|again"
actions, things = ([w.split() for w in s.split("|")] for s in (ACTIONS, THINGS))
openings, endings = OPENINGS.split("|"), ENDINGS.split("|")
rng = np.random.RandomState(0)
team_of = rng.permutation(np.arange(36) % 2)
texts, wish = [], rng.randint(36, size=6_000)
for action, thing in zip(*divmod(wish, 6), strict=True):
    parts = openings, actions[action], ["my", "the"], things[thing], endings
    texts.append(" ".join(rng.choice(words) for words in parts))
texts, y = np.array(texts), team_of[wish]
print(*texts[:3], sep="\n")
few, test = slice(600), slice(4_000, None)

# %%
# The teacher learns the team from 4 000 messages. It reads the texts, the
# student what a vectorizer makes of them: so the embeddings are computed first,
# and passed to ``fit``.
teacher = make_pipeline(
    TfidfVectorizer(), MLPClassifier((64,), early_stopping=True, random_state=0)
).fit(texts[:4_000], y[:4_000])
print(f"teacher: {teacher.score(texts[test], y[test]):.3f}")
extractor = EmbeddingExtractor(teacher)
E = extractor.fit_transform(texts[few])

# %%
# Linear models of 600 messages: of the labels, of the teacher's probabilities
# (one subclass), and of twenty subclasses a class.
words = TfidfVectorizer(dtype=np.float32)
plain = make_pipeline(words, LogisticRegression(C=10)).fit(texts[few], y[few])
print(f"labels: {plain.score(texts[test], y[test]):.3f}")
for n_subclasses in (1, 20):
    student = LELPStudentClassifier(
        module_params={"hidden_layer_sizes": ()},
        projector=LELPProjector(n_subclasses, head=extractor.head_),
        random_state=0,
    )
    model = make_pipeline(words, student)
    model.fit(texts[few], y[few], lelpstudentclassifier__teacher_embeddings=E)
    score = model.score(texts[test], y[test])
    print(f"{n_subclasses:2} subclasses: {score:.3f}")

# %%
# The subclasses that were found, by the wish, which no model has seen.
SubclassDisplay.from_estimator(
    student.projector_, E, y[few], fine_labels=wish[few]
)
plt.show()

# %%
# One file. It is compared with the pipeline on the texts that it is given.
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "messages.onnx")
    lelp_sklearn.onnx.to_onnx(model, texts[:500], path)
    print(f"{path.stat().st_size / 1e3:.0f} kB")
    session = onnxruntime.InferenceSession(path)
message = np.array([["please cancel the parcel today"]])
team, probabilities = session.run(None, {"X": message})
print(team, probabilities)
