"""Students of other methods, side by side, learn what one alone would learn."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

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
)


@pytest.fixture(scope="module")
def lessons(load):
    """Two lessons of 201 rows, so that two batches of 50 are joined to 51."""
    methods = load("methods")
    images, names = load_digits(n_class=8, return_X_y=True)
    X = (images / 16).astype(np.float32)
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        rows = slice(201 * seed, 201 * (seed + 1))
        logits = np.random.default_rng(seed).normal(size=(201, 6)).astype(np.float32)
        lesson = methods.Lesson(
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
            subclass_teacher=methods.SubclassTeacher(logits, 0.9, 1.0),
        )
        found.append(lesson)
    return found


def test_a_term_without_weight_leaves_vanilla_distillation(load, lessons):
    """To the logits of the students whose gradients are in closed form."""
    students, methods = load("peer_students"), load("methods").METHODS
    peer = load("peer_methods").Peer(term="RKD", training={"subclass_weight": 0.0})
    found = students.class_logits(peer, lessons, SETTINGS)
    expected = load("stacked").class_logits(methods["vanilla KD"], lessons, SETTINGS)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", PEERS)
def test_students_side_by_side_are_each_that_of_a_plain_loop(load, lessons, name):
    """torch's own layers and AdamW in double precision, one student at a time."""
    students = load("peer_students")
    peer = load("peer_methods").PEERS[name]
    settings = [{**setting, "regression_weight": 0.5} for setting in SETTINGS]
    found = students.class_logits(peer, lessons, settings)
    for lesson, by_setting in zip(lessons, found, strict=True):
        for setting, logits in zip(settings, by_setting, strict=True):
            expected = plain_student(load, peer, lesson, setting)
            np.testing.assert_allclose(logits, expected, rtol=2e-2, atol=2e-3)


def plain_student(load, peer, lesson, setting):
    """Train one student by one of the methods and return its class logits."""
    losses, stacked = load("peer_losses"), load("stacked")
    embeddings = stacked.scaled_embeddings(lesson.embeddings).double()
    teacher = torch.from_numpy(lesson.logits).double()
    if peer.term == "Subclass":
        teacher = torch.from_numpy(lesson.subclass_teacher.logits).double()
    (hidden, output), order = stacked.draws(peer, lesson, teacher.shape[1])
    torch.manual_seed(lesson.seed)
    own = plain_modules(peer.term, *lesson.embeddings.shape[1:])
    parameters = [p for m in (hidden, output, *own) for p in m.double().parameters()]
    if peer.term == "VID":
        raw = torch.full((embeddings.shape[1],), math.log(math.expm1(5 - 1e-5)))
        parameters.append(nn.Parameter(raw.double()))
    optimizer = torch.optim.AdamW(parameters, lr=1.0, weight_decay=0.01)
    X, y = torch.from_numpy(lesson.X).double(), torch.from_numpy(lesson.y)
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
                term = losses.variational_information(own[0](units), e, variances)
            elif peer.term == "RKD":
                term = losses.relations(units, e)
            elif peer.term == "CRD":
                term = losses.contrast(own[0](units), own[1](e), y[rows])
            elif peer.term == "DKD":
                term = losses.decoupled(a, t, y[rows], tau)
            elif peer.term == "DIST":
                term = losses.correlations(a, t, tau)
            else:
                term = kd
            base = kd if peer.term in ("VID", "RKD", "CRD") else labels
            weight = schedule(progress) if callable(schedule) else schedule
            optimizer.zero_grad()
            (base + weight * setting["regression_weight"] * term).backward()
            optimizer.step()
    X_score = torch.from_numpy(lesson.X_score).double()
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
    return []


def test_clusters_are_within_the_class_and_the_nearest_elsewhere(load, lessons):
    peer_methods = load("peer_methods")
    lesson = lessons[0]
    for name in ("agglomerative", "k-means, raw", "t-SNE + k-means"):
        within = peer_methods.PEERS[name].within(lesson)
        assert within.shape == (201, 2, peer_methods.N_SUBCLASSES)
        np.testing.assert_array_equal(within.sum(2), 1)
        assert set(np.unique(within)) == {0, 1}
        for label in (0, 1):
            own = within[lesson.y == label, label]
            E = lesson.embeddings[lesson.y == label]
            assert (own.sum(0) > 0).all()
            means = (own.T @ E) / own.sum(0)[:, np.newaxis]
            others = lesson.embeddings[lesson.y != label]
            distances = ((others[:, np.newaxis] - means) ** 2).sum(2)
            nearest = within[lesson.y != label, label].argmax(1)
            np.testing.assert_array_equal(nearest, distances.argmin(1))


def test_layout_that_is_kept_gives_the_clusters_of_a_new_one(load, lessons):
    peer_methods = load("peer_methods")
    anew = peer_methods.tsne_kmeans(lessons[0])
    kept = replace(lessons[0], layout=peer_methods.lay_out(lessons[0]))
    np.testing.assert_array_equal(peer_methods.tsne_kmeans(kept), anew)


def test_clusters_find_groups_that_lie_apart(load, lessons):
    """Twenty far groups in each class are the twenty clusters."""
    peer_methods = load("peer_methods")
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.resize(np.arange(40), 201))
    centres = 50 * rng.normal(size=(40, 32))
    E = (centres[groups] + rng.normal(size=(201, 32))).astype(np.float32)
    lesson = replace(lessons[0], embeddings=E, y=groups % 2, groups=groups)
    for name in ("agglomerative", "k-means, raw"):
        within = peer_methods.PEERS[name].within(lesson)
        own = within[np.arange(201), lesson.y].argmax(1)
        pairs = set(zip(groups.tolist(), own.tolist(), strict=True))
        assert len(pairs) == 40
