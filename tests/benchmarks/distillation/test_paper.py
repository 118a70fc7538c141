"""The paper's tasks: groups merged, texts, sounds and photos, and what a run leaves."""

import gzip
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import issparse

from benchmarks.distillation import config, preparation, run
from benchmarks.distillation.config import BASELINE, FITNET, OURS, UNION, WIDE
from benchmarks.distillation.datasets import cifar100, documents, patches, speech
from benchmarks.distillation.datasets.base import Paths, Task, merged
from benchmarks.distillation.methods import METHODS
from benchmarks.distillation.records import read_lines
from benchmarks.distillation.tables.paper import SEARCH_OF_PAPER, by_library
from benchmarks.distillation.teachers.perceptron import predict
from benchmarks.distillation.training import class_logits


def test_groups_are_merged_at_random_into_equal_classes_or_by_kind():
    np.testing.assert_array_equal(np.bincount(merged(100, 5)), 20)
    for n_classes in (2, 4, 5, 10, 20):
        class_of = merged(100, n_classes, cifar100.KINDS)
        np.testing.assert_array_equal(np.bincount(class_of), 100 // n_classes)
        for kind in range(20):
            assert len(set(class_of[kind == cifar100.KINDS])) == 1


def write_texts(folder, groups, n=1_300):
    for part, size in (("train", n), ("test", 40)):
        with gzip.open(folder / f"{part}.tsv.gz", "wt") as file:
            file.write("text\tlabel\tstars\n")
            lines = (
                f"{part} text {i}\t{groups[i % len(groups)]}\t{i % 2 + 1}\n"
                for i in range(size)
            )
            file.writelines(lines)


def test_groups_of_texts_are_finer_labels_and_classes_may_be_their_unions(tmp_path):
    write_texts(tmp_path, ["b", "a", "a"])
    parts = documents.read_documents(tmp_path, 200, 30, finer=("stars",))
    assert [len(part) for part in parts.values()] == [200, 30, 30]
    assert not set(parts["train"]["text"]) & set(parts["validation"]["text"])
    numbers = parts["test"]["text"].str.split().str[-1].astype(int)
    of_class, of_stars = numbers % 3 != 0, numbers % 2
    # The classes a and b, with one star or two.
    np.testing.assert_array_equal(parts["test"]["y"], ~of_class)
    np.testing.assert_array_equal(parts["test"]["group"], 2 * ~of_class + of_stars)
    names = ["comp.x", "comp.y", "rec.x", "misc.x", "sci.x", "talk.x", "soc.x"]
    write_texts(tmp_path, names)
    test = documents.read_documents(tmp_path, 9, 40, n_classes=2, by_kind=True)["test"]
    kind = test["text"].str.split().str[-1].astype(int) % 7
    np.testing.assert_array_equal(test["y"], kind >= 4)


@pytest.mark.parametrize("n_units", [0, 4])
def test_students_of_texts_read_sparse_words_and_fitnet_too(tmp_path, n_units):
    """Embeddings are at random: the words of a text tell its class."""
    (tmp_path / "few").mkdir()
    write_texts(tmp_path / "few", ["a", "b"])
    task = by_library(
        "few texts",
        kind=UNION,
        draw="documents",
        folder="few",
        arguments={"name": "few", "n_pool": 60, "n_train": 50, "n_score": 20},
        n_student=50,
        n_units=n_units,
        teacher_steps=5,
    )
    paths, rng = Paths(tmp_path, tmp_path), np.random.default_rng(0)
    (tmp_path / "documents").mkdir()
    for part, n in (("train", 60), ("validation", 20), ("test", 20)):
        embeddings = rng.normal(size=(n, 8)).astype(np.float32)
        np.save(documents.embeddings_path(paths, "few", part, n), embeddings)
    data = preparation.make_data(task, paths, 0, "test")
    assert issparse(data.X)
    assert data.X.shape[0] == 50
    setting = {"learning_rate": 0.01, "temperature": 4.0, "max_epochs": 2}
    table = config.Table("Few", (task,), (BASELINE, OURS, FITNET), SEARCH_OF_PAPER)
    assert (FITNET in table.of(task)) == bool(n_units)
    for method in table.of(task):
        own = {"regression_weight": 1.0} if method == FITNET else {}
        ((logits,),) = class_logits(METHODS[method], [data], [setting | own])
        assert logits.shape == (20, 2)
        assert np.isfinite(logits).all()


def test_spectrogram_of_a_tone_is_where_the_tone_is():
    rate, hop = 8_000, 0.02
    time = np.arange(rate // 4) / rate
    loudest = []
    for frequency in (300, 1_000, 3_000):
        tone = (10_000 * np.sin(2 * np.pi * frequency * time)).astype(np.int16)
        found = speech.log_mel(tone, rate, hop, 32)
        assert found.shape == (speech.N_MELS, 32)
        # A quarter of a second of 32 frames of 0.02; the rest is silent.
        np.testing.assert_allclose(found[:, 13:], np.log(1e-4), atol=1e-4)
        loudest.append(found[:, 5].argmax())
        mel = 2_595 * np.log10(1 + frequency / 700)
        width = 2_595 * np.log10(1 + 4_000 / 700) / (speech.N_MELS + 1)
        assert abs(loudest[-1] - (mel / width - 1)) <= 1
    assert loudest == sorted(loudest)


def test_numbers_are_spoken_digit_by_digit_and_by_speakers_of_the_part(tmp_path):
    """Each recording is a click at a place that tells digit and speaker."""
    folder = tmp_path / "spoken_digits"
    folder.mkdir()
    digit, speaker = (part.ravel() for part in np.mgrid[:10, :6])
    samples = np.zeros((60, 8_000), np.int16)
    samples[np.arange(60), 80 * (digit + 10 * speaker) + 80] = 30_000
    names = np.array(["f", "e", "d", "c", "b", "a"])
    arrays = {"samples": samples.ravel(), "offsets": 8_000 * np.arange(61)}
    np.savez(folder / "recordings.npz", digit=digit, speaker=names[speaker], **arrays)
    paths, numbers = Paths(tmp_path, tmp_path), np.array([12, 90])
    spectrograms, _, _ = speech.recordings(folder)
    for part, speakers in (("train", "abcd"), ("validation", "e"), ("test", "f")):
        rng = np.random.default_rng(0)
        found = speech.spoken(paths, part, numbers, rng)
        assert found.shape == (2, 1, speech.N_MELS, 2 * speech.DIGIT_FRAMES)
        for sound, (left, right) in zip(found[:, 0], ([1, 2], [9, 0]), strict=True):
            for half, wanted in zip(
                np.split(sound, 2, axis=1), (left, right), strict=True
            ):
                same = (spectrograms == half).all((1, 2))
                assert set(digit[same]) == {wanted}
                assert set(names[speaker[same]]) <= set(speakers)


def test_photos_of_a_mosaic_are_read_row_by_row():
    image = pytest.importorskip("PIL.Image")
    numbers = np.arange(2_500).reshape(50, 50)
    mosaic = np.stack([numbers // 256, numbers % 256, numbers % 7], 2).astype(np.uint8)
    file = io.BytesIO()
    image.fromarray(mosaic.repeat(32, 0).repeat(32, 1)).save(
        file, "WEBP", lossless=True
    )
    photos = cifar100.decode(file.getvalue(), np.array([0, len(file.getvalue())]))
    assert photos.shape == (2_500, 3, 32, 32)
    assert (photos == photos[:, :, :1, :1]).all()
    places = 256 * photos[:, 0, 0, 0].astype(int) + photos[:, 1, 0, 0]
    np.testing.assert_array_equal(places, np.arange(2_500))


def test_what_patches_respond_is_scaled_by_the_training_rows():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 3, 32, 32)).astype(np.float16)
    found, scored = patches.as_vectors(X, X[::-1].copy(), 8)
    assert found.shape == (40, 4 * 8)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(found.std(0), 1, rtol=1e-2)
    np.testing.assert_allclose(scored, found[::-1], atol=1e-5)


def test_class_targets_come_from_teachers_that_have_not_seen_the_row(tmp_path):
    """Labels at random can be learned by heart, and not foretold."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 20)).astype(np.float32)
    y = rng.integers(0, 2, 300)
    task = Task(X, y, y, X, y, n_student=200)
    small = replace(TASK, n_student=200, teacher_folds=3)
    path, options = tmp_path / "teacher.pt", {"n_steps": 150, "dropout": 0.0}
    teacher = preparation.trained_teacher(task, 0, path=path, **options)
    assert np.mean(predict(teacher, X) == y) > 0.95
    logits = preparation.out_of_fold_logits(small, task, 0, path, options)
    assert logits.shape == (200, 2)
    assert 0.35 < np.mean(logits.argmax(1) == y[:200]) < 0.65


TASK = by_library(
    "single digits, linear",
    kind=UNION,
    draw="digits",
    n_student=100,
    n_units=0,
    teacher_steps=10,
    teacher_folds=2,
    n_seeds=2,
    max_epochs=2,
    epoch_bounds=(2, 2),
    has_matthews=True,
)


def test_controls_take_the_setting_of_the_default_without_a_search(
    tmp_path, monkeypatch, capsys
):
    grid = {**SEARCH_OF_PAPER.grid, "temperature": (4.0,)}
    search = replace(SEARCH_OF_PAPER, grid=grid, n_finalists=1)
    table = config.Table(
        "Tiny", (TASK,), (BASELINE, OURS, WIDE), search, at_setting_of={WIDE: OURS}
    )
    monkeypatch.setattr(run, "TABLES", {"tiny": table})
    run.main(["tiny", "--cache", str(tmp_path), "--results", str(tmp_path)])
    trials = read_lines(tmp_path / "tiny_trials.csv.gz")
    assert {line["method"] for line in trials} == {BASELINE, OURS}
    # Three settings on a seed, one of them on two more.
    assert len(trials) == 2 * (3 + 2)
    results = read_lines(tmp_path / "tiny.csv")
    names = ("learning_rate", "temperature", "max_epochs", "seed")
    of = {
        method: [[x[n] for n in names] for x in results if x["method"] == method]
        for method in (OURS, WIDE)
    }
    assert of[OURS] == of[WIDE]
    assert all(-1 <= float(line["matthews"]) <= 1 for line in results)
    assert re.search("Matthews' coefficient, %", capsys.readouterr().out)
