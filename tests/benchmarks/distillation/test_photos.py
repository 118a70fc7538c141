"""The comparison on photos: files, teacher, and students trained one by one."""

import io
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from benchmarks.distillation import (
    comparison,
    config,
    methods,
    preparation,
    records,
    run,
    students,
    training,
)
from benchmarks.distillation.datasets import draw
from benchmarks.distillation.datasets import photos as photo_files
from benchmarks.distillation.datasets.base import Paths
from benchmarks.distillation.methods import fit, fitnet
from benchmarks.distillation.tables import TABLES
from benchmarks.distillation.teachers import convolutional

SIZES = {"train": 12, "test": 6}
N_VALIDATION = 40
SETTING = {"learning_rate": 0.01, "temperature": 4.0, "max_epochs": 2}


@pytest.fixture(scope="module", autouse=True)
def few_photos_to_validate_on():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photo_files, "N_VALIDATION", N_VALIDATION)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of small archives: ten kinds of photos, one after the other.

    Odd kinds are bright, even ones dark, in noise of which no two photos have the same.
    """
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    found = tmp_path_factory.mktemp("data")
    (found / "cifar10_jpeg").mkdir()
    for part, n in SIZES.items():
        y = np.repeat(np.arange(10), n).astype(np.uint8)
        files = []
        for kind in y:
            pixels = rng.integers(0, 120, size=(32, 32, 3)) + 100 * (kind % 2)
            file = io.BytesIO()
            image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG")
            files.append(file.getvalue())
        np.savez(
            found / "cifar10_jpeg" / f"{part}.npz",
            jpeg=np.frombuffer(b"".join(files), np.uint8),
            offsets=np.cumsum([0, *map(len, files)]),
            y=y,
        )
    return found


@pytest.fixture(scope="module")
def task():
    """The first task of the table, made tiny."""
    return replace(
        TABLES["photos"].tasks[0],
        arguments={},
        n_student=60,
        teacher_steps=12,
        teacher_width=6,
        max_epochs=2,
        epoch_bounds=(1, 4),
        n_seeds=2,
    )


@pytest.fixture(scope="module")
def paths(folder, tmp_path_factory):
    return Paths(folder, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def data(task, paths):
    return preparation.make_data(task, paths, 0, "validation")


def kind_of_photo(folder, part):
    """Return what is on each photo, by the bytes of its pixels."""
    image = pytest.importorskip("PIL.Image")
    archive = np.load(folder / "cifar10_jpeg" / f"{part}.npz")
    raw, ends = archive["jpeg"].tobytes(), archive["offsets"]
    pixels = [
        np.asarray(image.open(io.BytesIO(raw[i:j])).convert("RGB"))
        for i, j in pairwise(ends)
    ]
    return {
        photo.transpose(2, 0, 1).tobytes(): kind
        for photo, kind in zip(pixels, archive["y"], strict=True)
    }


# Rows


@pytest.mark.parametrize("part", ["validation", "test"])
def test_every_photo_is_drawn_once_with_what_is_on_it(task, paths, part):
    drawn = draw.draw(task, paths, 0, part).task
    kinds = kind_of_photo(paths.data, "train")
    of_score = kinds if part == "validation" else kind_of_photo(paths.data, "test")
    rows = [photo.tobytes() for photo in drawn.X]
    scored = [photo.tobytes() for photo in drawn.X_score]
    assert [kinds[row] for row in rows] == drawn.groups.tolist()
    assert (drawn.y == drawn.groups % 2).all()
    assert [of_score[row] % 2 for row in scored] == drawn.y_score.tolist()
    if part == "validation":
        assert len(scored) == N_VALIDATION
        assert {*rows, *scored} == kinds.keys()
        assert not {*rows} & {*scored}
    else:
        assert {*scored} == of_score.keys()
    # They come in the order of their kinds.
    assert (np.diff(drawn.groups) < 0).any()
    assert (np.diff(drawn.y_score) != 0).sum() > 10


def test_few_test_photos_are_of_many_kinds(task, paths):
    few = replace(task, arguments={"n_score": 20})
    drawn = draw.draw(few, paths, 0, "test").task
    kinds = kind_of_photo(paths.data, "test")
    assert len(drawn.X_score) == 20
    # As they come in their file, they would be of four.
    assert len({kinds[photo.tobytes()] for photo in drawn.X_score}) > 6


def test_student_reads_channels_scaled_by_its_own_rows(task, paths):
    drawn = draw.draw(task, paths, 0, "validation")
    X, X_score = drawn.read_as_student(60)

    def columns(photos):
        return photos.transpose(0, 2, 3, 1).reshape(-1, 3).astype(float)

    scaler = StandardScaler().fit(columns(drawn.task.X[:60]))
    for found, photos in ((X, drawn.task.X[:60]), (X_score, drawn.task.X_score)):
        expected = scaler.transform(columns(photos))
        np.testing.assert_allclose(columns(found), expected, rtol=1e-3, atol=1e-3)


def test_photos_are_decoded_once(paths, monkeypatch):
    photo_files.decode_photos(paths)
    monkeypatch.setattr(photo_files, "decode", None)
    photo_files.decode_photos(paths)


def test_photos_of_another_archive_are_not_the_kept_ones(paths, tmp_path):
    kept, _ = photo_files.read_part(paths, "test")
    with np.load(paths.data / "cifar10_jpeg" / "test.npz") as archive:
        raw, ends, y = (archive[name] for name in ("jpeg", "offsets", "y"))
    # As many files, in another order.
    files = [raw[i:j] for i, j in pairwise(ends)][::-1]
    (tmp_path / "cifar10_jpeg").mkdir()
    np.savez(
        tmp_path / "cifar10_jpeg" / "test.npz",
        jpeg=np.concatenate(files),
        offsets=np.cumsum([0, *map(len, files)]),
        y=y[::-1],
    )
    found, _ = photo_files.read_part(replace(paths, data=tmp_path), "test")
    np.testing.assert_array_equal(found, kept[::-1])


# The teacher


def test_crops_are_slices_of_a_padded_photo():
    rng = np.random.default_rng(0)
    photos = rng.integers(0, 256, size=(5, 3, 8, 8), dtype=np.uint8)
    rows, flipped = np.array([4, 0, 2, 2]), np.array([True, False, True, False])
    shifts = np.array([[0, 8, 3, 4], [5, 0, 8, 4]])
    found = convolutional.crop(
        convolutional.padded(torch.tensor(photos)),
        *map(torch.tensor, (rows, shifts, flipped)),
        size=8,
    ).numpy()
    margin = convolutional.SHIFT
    wide = np.pad(
        photos, [(0, 0), (0, 0), (margin,) * 2, (margin,) * 2], constant_values=128
    )
    for made, row, down, across, flip in zip(
        found, rows, *shifts, flipped, strict=True
    ):
        expected = wide[row][:, down : down + 8, across : across + 8]
        np.testing.assert_array_equal(made, expected[..., :: -1 if flip else 1])
    np.testing.assert_array_equal(found[3], photos[2])


def test_an_epoch_of_batches_has_every_row_once(task, paths):
    drawn = draw.draw(task, paths, 0, "validation").task
    numbered = replace(drawn, y=np.arange(len(drawn.y)))
    batches = convolutional.Batches(numbered, 0, torch.device("cpu"))
    first, second = (batches.draw()[1].tolist() for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(len(drawn.y)))
    assert first != second


def test_teacher_is_kept_and_its_head_reads_its_embeddings(
    task, paths, data, monkeypatch
):
    monkeypatch.setattr(preparation, "train_photo_teacher", None)
    again = preparation.make_data(task, paths, 0, "validation")
    np.testing.assert_array_equal(again.embeddings, data.embeddings)
    assert again.teacher_accuracy == data.teacher_accuracy
    assert data.embeddings.shape == (60, 4 * task.teacher_width)
    assert data.embeddings.dtype == np.float32
    # Bright or dark is easily learned.
    assert data.teacher_accuracy > 0.8
    assert (data.logits.argmax(1) == data.y).mean() > 0.8


@pytest.mark.parametrize(
    "asked", [{"labelled_share": 0.5}, {"n_copies": 2}, {"teacher_copies": 2}]
)
def test_rows_that_photos_do_not_have_are_refused(task, asked):
    (name,) = asked
    with pytest.raises(ValueError, match=f"{name} of .* leave it at 1"):
        # Nothing is drawn first: there is no place to draw from.
        preparation.make_data(replace(task, **asked), None, 0, "test")


def test_costly_parts_that_photos_do_not_have_are_refused(task):
    make_data = preparation.make_data
    with pytest.raises(ValueError, match=r"wanted has layout.* leave out"):
        make_data(task, None, 0, "test", {"layout"})


def test_teacher_of_another_device_is_another(task, paths, data, monkeypatch):

    def train(drawn, seed, n_steps, width, device):
        raise RuntimeError(f"trained on {device}")

    monkeypatch.setattr(preparation, "train_photo_teacher", train)
    on_gpu = replace(paths, device="cuda")
    with pytest.raises(RuntimeError, match="trained on cuda"):
        preparation.make_data(task, on_gpu, 0, "validation")


def test_teacher_leaves_global_state_as_it_was(task, paths):
    drawn = draw.draw(task, paths, 0, "validation").task
    drawn_before = torch.get_rng_state()
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.enabled, cudnn.deterministic
    one, other = (
        convolutional.train_photo_teacher(drawn, 7, 2, 4, torch.device("cpu"))
        for _ in range(2)
    )
    assert torch.equal(torch.get_rng_state(), drawn_before)
    assert (cudnn.benchmark, cudnn.enabled, cudnn.deterministic) == before
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_students_are_much_smaller_than_their_teachers():
    def size(module):
        return sum(p.numel() for p in module.parameters())

    times = []
    for task in TABLES["photos"].tasks:
        teacher = convolutional.PhotoTeacher(2, task.teacher_width)
        # Twenty subclasses in each of two classes.
        student = students.PhotoStudent(3, 40, **task.student_params)
        times.append(size(teacher) // size(student))
    # As the README has it.
    assert times == [20, 92, 92]


@pytest.mark.parametrize(("strided", "n_left"), [(False, 8), (True, 4)])
def test_student_averages_over_what_its_layers_leave(strided, n_left):
    student = students.PhotoStudent(3, 4, widths=(2, 5, 7), strided=strided)
    *layers, average, flatten = student.body
    photos = torch.zeros(2, 3, 32, 32)
    found = torch.nn.Sequential(*layers)(photos)
    assert found.shape == (2, 7, n_left, n_left)
    torch.testing.assert_close(flatten(average(found)), found.mean((2, 3)))
    assert student(photos).shape == (2, 4)


# Students


@pytest.mark.parametrize(
    "name", ["hard labels", "LELP, library defaults", "FitNet", "oracle"]
)
def test_a_unit_trains_the_students_of_the_public_api(task, data, name):
    method = methods.METHODS[name]
    few = method
    if method.within is None:
        # The data is too short for twenty.
        few = replace(method, splitting={"n_subclasses": 3, **method.splitting})
    setting = {**SETTING, "regression_weight": 2.0} if few.is_fitnet else SETTING
    by_hand = fit.fit(few, data, setting)
    (found,) = training.class_logits(few, [data], [setting])[0]
    assert found.shape == (N_VALIDATION, 2)
    predicted = by_hand.predict(data.X_score)
    np.testing.assert_array_equal(found.argmax(1), predicted)
    if not few.is_fitnet:
        np.testing.assert_array_equal(
            found[:, 1] - found[:, 0], by_hand.decision_function(data.X_score)
        )
    score = comparison.scores(task, data, found)["accuracy"]
    assert score == pytest.approx(np.mean(predicted == data.y_score))


def test_setting_that_diverges_is_scored_and_ends_no_search(data):
    setting = {**SETTING, "learning_rate": 1e30}
    method = methods.METHODS["vanilla KD"]
    with pytest.raises(FloatingPointError):
        fit.fit(method, data, setting)
    assert not fit.scored_logits(method, data, setting).any()


def test_loss_for_one_hidden_layer_is_refused_to_a_module(data):
    peer = methods.PEERS["CRD, annealed"]
    with pytest.raises(ValueError, match=r"'CRD'.*leave out the method"):
        training.class_logits(peer, [data], [SETTING])


def test_fitnet_takes_half_precision_for_storage_only(data):
    """What a device is given is single precision; the default device is the CPU."""
    teacher = {
        "teacher_embeddings": data.embeddings,
        "teacher_logits": data.logits,
    }
    options = {"max_epochs": 1, "random_state": 3}
    one = fitnet.FitNetClassifier(data.module, **options)
    other = fitnet.FitNetClassifier(data.module, device="cpu", **options)
    one.fit(data.X.astype(np.float32), data.y, **teacher)
    other.fit(data.X, data.y, **teacher)
    for a, b in zip(one.module_.parameters(), other.module_.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("name", ["LELP, library defaults", "FitNet"])
def test_teacher_and_students_learn_on_a_gpu(task, paths, tmp_path, name):
    on_gpu = replace(paths, cache=tmp_path, device="cuda")
    before = torch.cuda.get_rng_state()
    data = preparation.make_data(task, on_gpu, 0, "validation")
    assert data.teacher_accuracy > 0.8
    assert data.head.weight.device.type == "cpu"
    method = methods.METHODS[name]
    few = replace(method, splitting={**method.splitting, "n_subclasses": 3})
    setting = {**SETTING, "max_epochs": 20}
    (found,) = training.class_logits(few, [data], [setting])[0]
    assert (found.argmax(1) == data.y_score).mean() > 0.8
    assert torch.equal(torch.cuda.get_rng_state(), before)


# The command


@pytest.fixture
def tiny(task, monkeypatch):
    """The command with a tiny table of photos."""
    table = TABLES["photos"]
    task = replace(task, teacher_steps=3)
    larger = replace(task, name="CIFAR-10-bin, 40 000 rows", n_student=70)
    found = replace(
        table,
        tasks=(task, larger),
        methods=(config.BASELINE, config.FITNET),
        search=replace(
            table.search,
            grid={"learning_rate": (0.01, 0.02), "temperature": (4.0,)},
            n_trials=2,
            final_seeds=(102,),
            n_finalists=1,
            thorough=False,
        ),
    )
    monkeypatch.setattr(run, "TABLES", {"photos": found})
    return run


def call(tiny, folder, path, *options):
    arguments = ["photos", "--data-dir", str(folder), "--device", "cpu"]
    paths = ["--cache", str(path / "cache"), "--results", str(path)]
    tiny.main([*arguments, *paths, *options])


@pytest.mark.slow
def test_run_of_photos_ends_goes_on_and_is_reported(
    tiny, folder, tmp_path, monkeypatch, capsys
):
    call(tiny, folder, tmp_path)
    table = tiny.TABLES["photos"]
    results = records.read_lines(tmp_path / "photos.csv")
    assert [(x["task"], x["method"], x["seed"]) for x in results] == [
        (task.name, method, str(seed))
        for task in table.tasks
        for method in table.methods
        for seed in range(2)
    ]
    # Two settings of each method on each task, on two seeds; the best on one more.
    assert len(records.read_lines(tmp_path / "photos_trials.csv.gz")) == 2 * 2 * (
        2 * 2 + 1
    )
    # Both tasks have the same teachers.
    assert len(list((tmp_path / "cache").glob("*/teacher_*.pt"))) == 5
    files = {path: path.read_bytes() for path in tmp_path.glob("photos*.*")}
    monkeypatch.setattr(comparison, "make_data", None)
    call(tiny, folder, tmp_path, "--report")
    call(tiny, folder, tmp_path)
    assert all(path.read_bytes() == content for path, content in files.items())
    report = (tmp_path / "photos.md").read_text()
    assert "JPEG" in report
    assert all(f"### {task.name}" in report for task in table.tasks)


def test_photos_are_skipped_without_their_folder_or_pillow(
    tiny, folder, tmp_path, monkeypatch, capsys
):
    call(tiny, tmp_path, tmp_path)
    assert f"rows: there is no {tmp_path / 'cifar10_jpeg'}." in capsys.readouterr().out
    monkeypatch.setattr(draw, "is_installed", lambda package: False)
    call(tiny, folder, tmp_path)
    assert "the package pillow is not installed" in capsys.readouterr().out


def test_a_gpu_that_is_not_there_is_refused_at_once(
    tiny, folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        tiny.main(["photos", "--device", "cuda", "--results", str(tmp_path / "none")])
    assert "torch finds no GPU" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
