"""Students of other methods, side by side, learn what one alone would learn."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from benchmarks.distillation import methods, stacked, training
from benchmarks.distillation.methods import (
    base,
    clusters,
    crd,
    dist,
    dkd,
    losses,
    rkd,
    vid,
)

SETTINGS = [
    {"learning_rate": 0.02, "temperature": 2.0, "max_epochs": 4},
    {"learning_rate": 0.005, "temperature": 4.0, "max_epochs": 4},
]
PEERS = (
    "VID, annealed",
    "VID, constant",
    "RKD, annealed",
    "CRD, annealed",
    "CRD, constant",
    "DKD",
    "DIST",
    "Subclass Distillation",
    "global codebook, annealed",
    "global codebook, constant",
)
# Terms that take the place of vanilla distillation.
BESIDE_LABELS = ("DKD", "DIST", "Subclass")


@pytest.fixture(scope="module")
def data_by_seed():
    """Two data sets of 201 rows, so that two batches of 50 are joined to 51."""
    images, names = load_digits(n_class=8, return_X_y=True)
    X = (images / 16).astype(np.float32)
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        rows = slice(201 * seed, 201 * (seed + 1))
        logits = np.random.default_rng(seed).normal(size=(201, 6)).astype(np.float32)
        data = base.DistillationData(
            X=X[rows],
            y=names[rows] % 2,
            groups=names[rows],
            embeddings=X[rows, ::2],
            head=nn.Linear(32, 2),
            n_units=12,
            X_score=X[500:600],
            y_score=names[500:600] % 2,
            teacher_accuracy=0.0,
            seed=seed,
            training={"weight_decay": 0.01, "batch_size": 50},
            subclass_teacher=base.SubclassTeacher(logits, 0.9, 1.0),
        )
        found.append(data)
    return found


def test_a_term_without_weight_leaves_vanilla_distillation(data_by_seed):
    """To the students of the public API: their weights, order of rows and steps."""
    peer = base.Peer(term="RKD", training={"subclass_weight": 0.0})
    found = stacked.class_logits(peer, data_by_seed, SETTINGS)
    expected = training.class_logits(
        methods.METHODS["vanilla KD"], data_by_seed, SETTINGS
    )
    # The library knows of two classes the difference alone.
    np.testing.assert_allclose(np.diff(found), np.diff(expected), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", PEERS)
def test_students_side_by_side_are_each_that_of_a_plain_loop(data_by_seed, name):
    """torch's own layers and AdamW in double precision, one student at a time."""
    peer = methods.PEERS[name]
    settings = [{**setting, "regression_weight": 0.5} for setting in SETTINGS]
    found = stacked.class_logits(peer, data_by_seed, settings)
    for data, by_setting in zip(data_by_seed, found, strict=True):
        for setting, logits in zip(settings, by_setting, strict=True):
            expected = plain_student(peer, data, setting)
            np.testing.assert_allclose(logits, expected, rtol=2e-2, atol=2e-3)


def plain_student(peer, data, setting):
    """Train one student by one of the methods and return its class logits."""
    data = peer.select_layer(data)
    embeddings = stacked.scaled_embeddings(data.embeddings).double()
    teacher = torch.from_numpy(data.logits).double()
    if peer.term == "Subclass":
        teacher = torch.from_numpy(data.subclass_teacher.logits).double()
    (hidden, output, *_), order = stacked.draws(peer, data, teacher.shape[1])
    torch.manual_seed(data.seed)
    own = plain_modules(peer.term, *data.embeddings.shape[1:])
    parameters = [p for m in (hidden, output, *own) for p in m.double().parameters()]
    if peer.term == "VID":
        raw = torch.full((embeddings.shape[1],), math.log(math.expm1(5 - 1e-5)))
        parameters.append(nn.Parameter(raw.double()))
    optimizer = torch.optim.AdamW(parameters, lr=1.0, weight_decay=0.01)
    X, y = torch.from_numpy(data.X).double(), torch.from_numpy(data.y)
    tau, n_epochs = setting["temperature"], setting["max_epochs"]
    schedule = peer.training.get("subclass_weight", lambda p: max(0.0, 1 - 2 * p))
    for epoch in range(n_epochs):
        batches = stacked.split(order(epoch).unsqueeze(0), 50)
        for step, (rows,) in enumerate(batches):
            progress = (epoch + step / len(batches)) / n_epochs
            rate = setting["learning_rate"] * (1 + math.cos(math.pi * progress)) / 2
            optimizer.param_groups[0]["lr"] = rate
            units = torch.relu(hidden(X[rows]))
            a, t, e = output(units), teacher[rows], embeddings[rows]
            kd = losses.distillation(a, t, tau)
            labels = nn.functional.cross_entropy(losses.class_logits(a, 2), y[rows])
            if peer.term == "VID":
                variances = nn.functional.softplus(parameters[-1]) + 1e-5
                term = vid.variational_information(own[0](units), e, variances)
            elif peer.term == "RKD":
                term = rkd.relations(units, e)
            elif peer.term == "CRD":
                term = crd.contrast(own[0](units), own[1](e), y[rows])
            elif peer.term == "codebook":
                clusters = torch.from_numpy(data.embeddings[rows].argmax(1))
                term = nn.functional.cross_entropy(own[0](units), clusters)
            elif peer.term == "DKD":
                term = dkd.decoupled(a, t, y[rows], tau)
            elif peer.term == "DIST":
                term = dist.correlations(a, t, tau)
            else:
                term = kd
            of_classes = kd if peer.term not in BESIDE_LABELS else labels
            weight = schedule(progress) if callable(schedule) else schedule
            optimizer.zero_grad()
            (of_classes + weight * setting["regression_weight"] * term).backward()
            optimizer.step()
    X_score = torch.from_numpy(data.X_score).double()
    with torch.no_grad():
        return losses.class_logits(output(torch.relu(hidden(X_score))), 2).numpy()


def plain_modules(term, n_embedding):
    """Draw what a method trains beside the student."""
    if term == "VID":
        layers = [nn.Linear(12, n_embedding)]
        for _ in range(2):
            layers += [nn.ReLU(), nn.Linear(n_embedding, n_embedding)]
        return [nn.Sequential(*layers)]
    if term == "CRD":
        return [nn.Linear(12, 12), nn.Linear(n_embedding, 12)]
    if term == "codebook":
        return [nn.Linear(12, n_embedding)]
    return []


def test_clusters_are_within_the_class_and_the_nearest_elsewhere(data_by_seed):
    data = data_by_seed[0]
    for name in ("agglomerative", "k-means, raw", "t-SNE + k-means"):
        within = methods.PEERS[name].within(data)
        assert within.shape == (201, 2, clusters.N_SUBCLASSES)
        np.testing.assert_array_equal(within.sum(2), 1)
        assert set(np.unique(within)) == {0, 1}
        for label in (0, 1):
            own = within[data.y == label, label]
            E = data.embeddings[data.y == label]
            assert (own.sum(0) > 0).all()
            means = (own.T @ E) / own.sum(0)[:, np.newaxis]
            others = data.embeddings[data.y != label]
            distances = ((others[:, np.newaxis] - means) ** 2).sum(2)
            nearest = within[data.y != label, label].argmax(1)
            np.testing.assert_array_equal(nearest, distances.argmin(1))


def test_layout_that_is_kept_gives_the_clusters_of_a_new_one(data_by_seed):
    again = clusters.tsne_kmeans(data_by_seed[0])
    kept = replace(data_by_seed[0], layout=clusters.lay_out(data_by_seed[0]))
    np.testing.assert_array_equal(clusters.tsne_kmeans(kept), again)


def test_clusters_find_groups_that_lie_apart(data_by_seed):
    """Twenty far groups in each class are the twenty clusters."""
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.resize(np.arange(40), 201))
    centres = 50 * rng.normal(size=(40, 32))
    E = (centres[groups] + rng.normal(size=(201, 32))).astype(np.float32)
    data = replace(data_by_seed[0], embeddings=E, y=groups % 2, groups=groups)
    for name in ("agglomerative", "k-means, raw"):
        within = methods.PEERS[name].within(data)
        own = within[np.arange(201), data.y].argmax(1)
        pairs = set(zip(groups.tolist(), own.tolist(), strict=True))
        assert len(pairs) == 40
