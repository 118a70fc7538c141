"""The comparison on photos: files, teacher, and students trained one by one."""

import csv
import io
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

SIZES = {"train": 12, "test": 6}
N_VALIDATION = 40
SETTING = {"learning_rate": 0.01, "temperature": 4.0, "max_epochs": 2}


@pytest.fixture(scope="module")
def load(load):
    """Validate on few photos."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load("accuracy.data"), "N_PHOTOS_VALIDATION", N_VALIDATION)
        yield load


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
def task(load):
    """The first task of the table, made tiny."""
    return replace(
        load("accuracy.tables").PHOTOS[0],
        arguments={},
        n_student=60,
        teacher_steps=12,
        teacher_width=6,
        max_epochs=2,
        epoch_bounds=(1, 4),
        n_seeds=2,
    )


@pytest.fixture(scope="module")
def places(load, folder, tmp_path_factory):
    return load("accuracy.data").Places(folder, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def lesson(load, task, places):
    return load("accuracy.lessons").make_lesson(task, places, 0, "validation")


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
def test_every_photo_is_drawn_once_with_what_is_on_it(load, task, places, part):
    drawn = load("accuracy.data").draw(task, places, 0, part).task
    kinds = kind_of_photo(places.data, "train")
    of_score = kinds if part == "validation" else kind_of_photo(places.data, "test")
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


def test_few_test_photos_are_of_many_kinds(load, task, places):
    few = replace(task, arguments={"n_score": 20})
    drawn = load("accuracy.data").draw(few, places, 0, "test").task
    kinds = kind_of_photo(places.data, "test")
    assert len(drawn.X_score) == 20
    # As they come in their file, they would be of four.
    assert len({kinds[photo.tobytes()] for photo in drawn.X_score}) > 6


def test_student_reads_channels_scaled_by_its_own_rows(load, task, places):
    drawn = load("accuracy.data").draw(task, places, 0, "validation")
    X, X_score = drawn.read_as_student(60)

    def columns(photos):
        return photos.transpose(0, 2, 3, 1).reshape(-1, 3).astype(float)

    scaler = StandardScaler().fit(columns(drawn.task.X[:60]))
    for found, photos in ((X, drawn.task.X[:60]), (X_score, drawn.task.X_score)):
        expected = scaler.transform(columns(photos))
        np.testing.assert_allclose(columns(found), expected, rtol=1e-3, atol=1e-3)


def test_photos_are_decoded_once(load, places, monkeypatch):
    data = load("accuracy.data")
    data.decode_photos(places)
    monkeypatch.setattr(load("accuracy.photos"), "decode", None)
    data.decode_photos(places)


def test_photos_of_another_archive_are_not_the_kept_ones(load, places, tmp_path):
    data = load("accuracy.data")
    kept, _ = data.read_part(places, "test")
    with np.load(places.data / "cifar10_jpeg" / "test.npz") as archive:
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
    found, _ = data.read_part(replace(places, data=tmp_path), "test")
    np.testing.assert_array_equal(found, kept[::-1])


# The teacher


def test_crops_are_slices_of_a_padded_photo(load):
    module = load("photo_teacher")
    rng = np.random.default_rng(0)
    photos = rng.integers(0, 256, size=(5, 3, 8, 8), dtype=np.uint8)
    rows, flipped = np.array([4, 0, 2, 2]), np.array([True, False, True, False])
    shifts = np.array([[0, 8, 3, 4], [5, 0, 8, 4]])
    found = module.crop(
        module.padded(torch.tensor(photos)),
        *map(torch.tensor, (rows, shifts, flipped)),
        size=8,
    ).numpy()
    margin = module.SHIFT
    wide = np.pad(
        photos, [(0, 0), (0, 0), (margin,) * 2, (margin,) * 2], constant_values=128
    )
    for made, row, down, across, flip in zip(
        found, rows, *shifts, flipped, strict=True
    ):
        expected = wide[row][:, down : down + 8, across : across + 8]
        np.testing.assert_array_equal(made, expected[..., :: -1 if flip else 1])
    np.testing.assert_array_equal(found[3], photos[2])


def test_an_epoch_of_batches_has_every_row_once(load, task, places):
    module = load("photo_teacher")
    drawn = load("accuracy.data").draw(task, places, 0, "validation").task
    numbered = replace(drawn, y=np.arange(len(drawn.y)))
    batches = module.Batches(numbered, 0, torch.device("cpu"))
    first, second = (batches.draw()[1].tolist() for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(len(drawn.y)))
    assert first != second


def test_teacher_is_kept_and_its_head_reads_its_embeddings(
    load, task, places, lesson, monkeypatch
):
    lessons = load("accuracy.lessons")
    monkeypatch.setattr(lessons, "train_photo_teacher", None)
    again = lessons.make_lesson(task, places, 0, "validation")
    np.testing.assert_array_equal(again.embeddings, lesson.embeddings)
    assert again.teacher_accuracy == lesson.teacher_accuracy
    assert lesson.embeddings.shape == (60, 4 * task.teacher_width)
    assert lesson.embeddings.dtype == np.float32
    # Bright or dark is easily learned.
    assert lesson.teacher_accuracy > 0.8
    assert (lesson.logits.argmax(1) == lesson.y).mean() > 0.8


@pytest.mark.parametrize(
    "asked", [{"labelled_share": 0.5}, {"n_copies": 2}, {"teacher_copies": 2}]
)
def test_rows_that_photos_do_not_have_are_refused(load, task, asked):
    (name,) = asked
    with pytest.raises(ValueError, match=f"{name} of .* leave it at 1"):
        # Nothing is drawn first: there is no place to draw from.
        load("accuracy.lessons").make_lesson(replace(task, **asked), None, 0, "test")


def test_costly_parts_that_photos_do_not_have_are_refused(load, task):
    make_lesson = load("accuracy.lessons").make_lesson
    with pytest.raises(ValueError, match=r"wanted has layout.* leave out"):
        make_lesson(task, None, 0, "test", {"layout"})


def test_teacher_of_another_device_is_another(load, task, places, lesson, monkeypatch):
    lessons = load("accuracy.lessons")

    def train(drawn, seed, n_steps, width, device):
        raise RuntimeError(f"trained on {device}")

    monkeypatch.setattr(lessons, "train_photo_teacher", train)
    on_gpu = replace(places, device="cuda")
    with pytest.raises(RuntimeError, match="trained on cuda"):
        lessons.make_lesson(task, on_gpu, 0, "validation")


def test_teacher_leaves_global_state_as_it_was(load, task, places):
    module = load("photo_teacher")
    drawn = load("accuracy.data").draw(task, places, 0, "validation").task
    drawn_before = torch.get_rng_state()
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.enabled, cudnn.deterministic
    one, other = (
        module.train_photo_teacher(drawn, 7, 2, 4, torch.device("cpu"))
        for _ in range(2)
    )
    assert torch.equal(torch.get_rng_state(), drawn_before)
    assert (cudnn.benchmark, cudnn.enabled, cudnn.deterministic) == before
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_students_are_much_smaller_than_their_teachers(load):
    modules = load("photo_teacher"), load("photo_student")

    def size(module):
        return sum(p.numel() for p in module.parameters())

    times = []
    for task in load("accuracy.tables").PHOTOS:
        teacher = modules[0].PhotoTeacher(2, task.teacher_width)
        # Twenty subclasses in each of two classes.
        student = modules[1].PhotoStudent(3, 40, **task.student_params)
        times.append(size(teacher) // size(student))
    # As the README has it.
    assert times == [20, 92, 92]


@pytest.mark.parametrize(("strided", "n_left"), [(False, 8), (True, 4)])
def test_student_averages_over_what_its_layers_leave(load, strided, n_left):
    student = load("photo_student").PhotoStudent(
        3, 4, widths=(2, 5, 7), strided=strided
    )
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
def test_a_unit_trains_the_students_of_the_public_api(load, task, lesson, name):
    methods, run = load("methods"), load("accuracy.run")
    method = methods.METHODS[name]
    few = method
    if method.within is None:
        # The lesson is too short for twenty.
        few = replace(method, splitting={"n_subclasses": 3, **method.splitting})
    setting = {**SETTING, "regression_weight": 2.0} if few.is_fitnet else SETTING
    by_hand = methods.fit(few, lesson, setting)
    (found,) = load("peer_students").class_logits(few, [lesson], [setting])[0]
    assert found.shape == (N_VALIDATION, 2)
    predicted = by_hand.predict(lesson.X_score)
    np.testing.assert_array_equal(found.argmax(1), predicted)
    if not few.is_fitnet:
        np.testing.assert_array_equal(
            found[:, 1] - found[:, 0], by_hand.decision_function(lesson.X_score)
        )
    score = run.scores(task, lesson, found)["accuracy"]
    assert score == pytest.approx(np.mean(predicted == lesson.y_score))


def test_setting_that_diverges_is_scored_and_ends_no_search(load, lesson):
    methods = load("methods")
    setting = {**SETTING, "learning_rate": 1e30}
    method = methods.METHODS["vanilla KD"]
    with pytest.raises(FloatingPointError):
        methods.fit(method, lesson, setting)
    assert not methods.scored_logits(method, lesson, setting).any()


def test_loss_for_one_hidden_layer_is_refused_to_a_module(load, lesson):
    peer = load("peer_methods").PEERS["CRD, annealed"]
    with pytest.raises(ValueError, match=r"'CRD'.*leave out the method"):
        load("peer_students").class_logits(peer, [lesson], [SETTING])


def test_fitnet_takes_half_precision_for_storage_only(load, lesson):
    """What a device is given is single precision; the default device is the CPU."""
    fitnet = load("fitnet")
    taught = {
        "teacher_embeddings": lesson.embeddings,
        "teacher_logits": lesson.logits,
    }
    options = {"max_epochs": 1, "random_state": 3}
    one = fitnet.FitNetClassifier(lesson.module, **options)
    other = fitnet.FitNetClassifier(lesson.module, device="cpu", **options)
    one.fit(lesson.X.astype(np.float32), lesson.y, **taught)
    other.fit(lesson.X, lesson.y, **taught)
    for a, b in zip(one.module_.parameters(), other.module_.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("name", ["LELP, library defaults", "FitNet"])
def test_teacher_and_students_learn_on_a_gpu(load, task, places, tmp_path, name):
    on_gpu = replace(places, cache=tmp_path, device="cuda")
    before = torch.cuda.get_rng_state()
    lesson = load("accuracy.lessons").make_lesson(task, on_gpu, 0, "validation")
    assert lesson.teacher_accuracy > 0.8
    assert lesson.head.weight.device.type == "cpu"
    method = load("methods").METHODS[name]
    few = replace(method, splitting={**method.splitting, "n_subclasses": 3})
    setting = {**SETTING, "max_epochs": 20}
    (found,) = load("peer_students").class_logits(few, [lesson], [setting])[0]
    assert (found.argmax(1) == lesson.y_score).mean() > 0.8
    assert torch.equal(torch.cuda.get_rng_state(), before)


# The command


@pytest.fixture
def tiny(load, task, monkeypatch):
    """The command with a tiny table of photos."""
    command, table = load("compare"), load("accuracy.tables").TABLES["photos"]
    config = load("accuracy.config")
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
    monkeypatch.setattr(command, "TABLES", {"photos": found})
    return command


def call(tiny, folder, path, *options):
    arguments = ["photos", "--data-dir", str(folder), "--device", "cpu"]
    places = ["--cache", str(path / "cache"), "--results", str(path)]
    tiny.main([*arguments, *places, *options])


def lines_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_run_of_photos_ends_goes_on_and_is_reported(
    tiny, load, folder, tmp_path, monkeypatch, capsys
):
    call(tiny, folder, tmp_path)
    table = tiny.TABLES["photos"]
    results = lines_of(tmp_path / "photos.csv")
    assert [(x["task"], x["method"], x["seed"]) for x in results] == [
        (task.name, method, str(seed))
        for task in table.tasks
        for method in table.methods
        for seed in range(2)
    ]
    # Two settings of each method on each task, on two seeds; the best on one more.
    assert len(lines_of(tmp_path / "photos_trials.csv")) == 2 * 2 * (2 * 2 + 1)
    # Both tasks have the same teachers.
    assert len(list((tmp_path / "cache").glob("*/teacher_*.pt"))) == 5
    files = {path: path.read_text() for path in tmp_path.glob("photos*.*")}
    monkeypatch.setattr(load("accuracy.run"), "make_lesson", None)
    call(tiny, folder, tmp_path, "--report")
    call(tiny, folder, tmp_path)
    assert all(path.read_text() == text for path, text in files.items())
    report = (tmp_path / "photos.md").read_text()
    assert "JPEG" in report
    assert all(f"### {task.name}" in report for task in table.tasks)


def test_photos_are_skipped_without_their_folder_or_pillow(
    tiny, load, folder, tmp_path, monkeypatch, capsys
):
    call(tiny, tmp_path, tmp_path)
    assert f"rows: there is no {tmp_path / 'cifar10_jpeg'}." in capsys.readouterr().out
    monkeypatch.setattr(load("accuracy.data"), "decoder_is_missing", lambda: True)
    call(tiny, folder, tmp_path)
    assert "Pillow, which decodes its photos, is not" in capsys.readouterr().out


def test_a_gpu_that_is_not_there_is_refused_at_once(
    tiny, folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        tiny.main(["photos", "--device", "cuda", "--results", str(tmp_path / "none")])
    assert "torch finds no GPU" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
