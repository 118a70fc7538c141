"""Files: full disks, killed processes, links in the way and damage."""

import errno
import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from lelp_sklearn import (
    EmbeddingExtractor,
    LELPProjector,
    LELPStudentClassifier,
    _files,
)
from tests.extractor_problems import make_model, rows
from tests.student_problems import make_groups

ROOT = Path(__file__).parents[2]

# Forked from a process that has imported this file and done nothing else.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])

is_linux = pytest.mark.skipif(sys.platform != "linux", reason="as Linux has it")


def run_in_process(function, *arguments):
    """Return the exit code of a process that calls a function of this file."""
    process = PROCESSES.Process(target=function, args=arguments)
    process.start()
    process.join(300)
    return process.exitcode


def make_extractor(**options):
    return EmbeddingExtractor(make_model(), batch_size=8, **options)


def write_soft_labels(path):
    _, y, E, head = make_groups()
    return LELPProjector(2, head=head).fit(E, y).transform(E, out=path)


def write_embeddings(path):
    return make_extractor().extract(rows(100), path)


def write_checkpoint(path):
    X, y, E, _ = make_groups()
    student = LELPStudentClassifier(max_epochs=2, checkpoint=path, random_state=0)
    return student.fit(X, y, teacher_embeddings=E)


def write_onnx(path):
    X, y, E, _ = make_groups()
    student = LELPStudentClassifier(max_epochs=1, random_state=0)
    student.fit(X, y, teacher_embeddings=E).to_onnx(path)


WRITERS = {
    "student.onnx": write_onnx,
    "e.npy": write_embeddings,
    "out.npy": write_soft_labels,
    "student.ckpt": write_checkpoint,
}
every_file = pytest.mark.parametrize("name", WRITERS)


# --------------------------------------------------------------------------- full disks

FULL = """
    import os
    import sys
    import numpy as np
    from lelp_sklearn import LELPProjector
    from tests.student_problems import make_groups
    from tests.extraction.test_files import make_extractor, write_checkpoint

    def report(write, *arguments, **options):
        try:
            write(*arguments, **options)
        except ValueError as error:
            print(error)

    os.chdir(sys.argv[1])
    X, y, E, head = make_groups()
    projector = LELPProjector(2, head=head).fit(E, y)
    n_rows = os.statvfs(".").f_bavail * 4096 // 32
    report(projector.transform, np.tile(E[:1], (n_rows, 1)), out="out.npy")
    X = np.zeros((os.statvfs(".").f_bavail * 4096 // 20, 6), dtype=np.float32)
    report(make_extractor().extract, X, "e.npy", dtype="float32")
    with open("others", "wb") as file:
        file.write(bytes(os.statvfs(".").f_bavail * 4096 - 4096))
    report(write_checkpoint, "student.ckpt")
    print(sorted(os.listdir(".")))
"""


@pytest.mark.slow
@is_linux
def test_a_full_disk_is_an_error_that_says_how_much_is_missing(tmp_path):
    """Room for the numbers, but not for the header; later for one page."""
    mount = 'mount -t tmpfs -o size=2m tmpfs "$1" && exec "$2" -c "$3" "$1"'
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*command, mount, "", tmp_path, "true"], check=False).returncode:
        pytest.skip("this user may not mount a small file system of its own")
    command += [mount, "", str(tmp_path), sys.executable, textwrap.dedent(FULL)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    )
    out, embeddings, checkpoint, names = done.stdout.splitlines()
    left = "bytes and the disk has 2,097,152 left"
    assert out.startswith(f"out='out.npy' needs 2,097,280 {left}")
    assert embeddings.startswith(f"path='e.npy' needs 2,097,268 {left}")
    assert checkpoint.startswith("checkpoint='student.ckpt' needs ")
    assert "bytes and the disk has 4,096 left" in checkpoint
    assert names == "['e.npy.lock', 'others', 'student.ckpt.lock']"


def write_beyond_a_limit(name, folder, messages):
    import resource

    # Numba's cache, which the limit concerns too, is filled before.
    with tempfile.TemporaryDirectory() as other:
        WRITERS[name](Path(other) / name)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, resource.RLIM_INFINITY))
    try:
        WRITERS[name](folder / name)
    except ValueError as error:
        messages.put(str(error))


@pytest.mark.slow
@is_linux
@every_file
def test_room_that_the_system_does_not_give_is_an_error(name, tmp_path):
    messages = PROCESSES.SimpleQueue()
    assert run_in_process(write_beyond_a_limit, name, tmp_path, messages) == 0
    message = messages.get()
    assert f"{name}' needs " in message
    assert "or less by a quota or a limit on the size of a file" in message
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".lock"] == []


@every_file
def test_the_room_of_the_whole_file_is_reserved(name, tmp_path, monkeypatch):
    """Its header included, and before it has its name."""
    reserved = []

    def reserve(file, offset, length):
        assert not (tmp_path / name).exists() or name == "student.ckpt"
        reserved.append((os.fstat(file).st_ino, offset + length))

    monkeypatch.setattr("os.posix_fallocate", reserve, raising=False)
    WRITERS[name](tmp_path / name)
    found = (tmp_path / name).stat()
    assert (found.st_ino, found.st_size) in reserved


@is_linux
@every_file
def test_a_file_system_that_reserves_nothing_is_written_to_in_full(
    name, tmp_path, monkeypatch
):
    """So that no hole is left where there is no room."""

    def refuse(file, offset, length):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("os.posix_fallocate", refuse)
    holes = []
    original = np.memmap.__new__

    def watch(cls, file, dtype, mode, *arguments, **options):
        if mode == "r+":
            found = os.fstat(file.fileno())
            holes.append(found.st_size - 512 * found.st_blocks)
        return original(cls, file, dtype, mode, *arguments, **options)

    monkeypatch.setattr(np.memmap, "__new__", watch)
    WRITERS[name](tmp_path / name)
    assert max(holes, default=0) <= 0
    assert len(holes) == name.endswith(".npy")


# --------------------------------------------------------------------- killed processes


def extract_until_killed(path, name, turn, between):
    """Extract; the process kills itself at the given call of a function."""
    _files._SECONDS_BETWEEN_ENTRIES = between
    model, calls = make_model(), []

    def count(*arguments):
        calls.append(name)
        if len(calls) == turn:
            os.kill(os.getpid(), signal.SIGKILL)

    if name == "forward":
        model.register_forward_pre_hook(count)
    else:
        original = getattr(os, name)

        def counted(*arguments):
            count()
            return original(*arguments)

        setattr(os, name, counted)
    EmbeddingExtractor(model, batch_size=8).extract(rows(100), path)


# How often each is called at least in an extraction of 13 batches.
CALLS = {"forward": 14, "fsync": 39, "replace": 14, "posix_fallocate": 14}


@is_linux
def test_twenty_killed_extractions_end_as_an_undisturbed_one(tmp_path):
    make_extractor().extract(rows(100), tmp_path / "whole.npy")
    whole = (tmp_path / "whole.npy").read_bytes()
    random = np.random.RandomState(0)
    for number in range(20):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / "e.npy"
        name = random.choice([*CALLS, "forward", "forward"])
        between = 3600 if name == "forward" and random.randint(2) else 0
        turn = 1 + random.randint(CALLS[name])
        how = str(name), int(turn), between
        assert run_in_process(extract_until_killed, path, *how) == -signal.SIGKILL
        assert not path.exists()
        # Again, unless too little is left to do.
        again = str(name), int(random.randint(2, 5)), 0
        killed = run_in_process(extract_until_killed, path, *again)
        assert killed in (-signal.SIGKILL, 0)
        make_extractor().extract(rows(100), path)
        assert path.read_bytes() == whole, how
        names = ["e.npy", "e.npy.journal", "e.npy.lock"]
        assert sorted(p.name for p in folder.iterdir()) == names


@is_linux
def test_the_journal_of_a_file_that_is_gone_does_not_vouch_for_the_next(tmp_path):
    """A process that dies before its first entry leaves no other behind."""
    path = tmp_path / "e.npy"
    # The first call enters every batch, the second, of a file that is empty, none.
    for turn, between in ((9, 0), (2, 3600)):
        path.with_name("e.npy.part").unlink(missing_ok=True)
        how = "forward", turn, between
        assert run_in_process(extract_until_killed, path, *how) == -signal.SIGKILL
    extractor = make_extractor()
    assert_array_equal(
        extractor.extract(rows(100), path),
        extractor.transform(rows(100)).astype(np.float16),
    )


def test_a_part_with_a_later_journal_is_refused(tmp_path):
    """As of a copy that was made while the file was written."""
    path = tmp_path / "e.npy"
    begin(path, n_done=40)
    part = (tmp_path / "e.npy.part").read_bytes()
    path.with_name("e.npy.journal").unlink()
    begin(path, n_done=80)
    (tmp_path / "e.npy.part").write_bytes(part)
    with pytest.raises(ValueError, match="the first 80 rows differ from those"):
        write_embeddings(path)
    assert not path.exists()


def begin(path, n_done):
    """Extract `rows(100)` as far as some rows."""
    model, seen, limit = make_model(), [], np.inf

    def stop(module, arguments):
        seen.append(len(arguments[0]))
        if sum(seen) > limit:
            raise KeyboardInterrupt

    model.register_forward_pre_hook(stop)
    extractor = EmbeddingExtractor(model, batch_size=8).fit(rows(100))
    # Twice the rows that fit looks at, as extract fits again.
    limit = 2 * sum(seen) + n_done
    with pytest.raises(KeyboardInterrupt):
        extractor.extract(rows(100), path)


# ------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("done", [101, -8, True, 40.0, "40", None, 48])
def test_a_journal_that_does_not_fit_its_file_is_refused(done, tmp_path):
    path = tmp_path / "e.npy"
    begin(path, n_done=40)
    journal = tmp_path / "e.npy.journal"
    entry = json.loads(journal.read_text())
    assert entry["done"] == 40
    journal.write_text(json.dumps({**entry, "done": done}))
    with pytest.raises(ValueError, match=r"is not as it was written .*: delete"):
        write_embeddings(path)
    assert not path.exists()


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"done": 40, "checksum": 0, "identity": [1]}',
        b'{"done": 40, "checksum": 0, "identity": null}',
        b'{"done": Infinity, "checksum": 0, "identity": {}}',
        b"9" * 10_000,
    ],
)
def test_a_damaged_journal_is_refused(content, complete, tmp_path):
    path = tmp_path / "e.npy"
    begin(path, n_done=40)
    if complete:
        write_embeddings(path)
    (tmp_path / "e.npy.journal").write_bytes(content)
    with pytest.raises(ValueError, match=r"unreadable journal|with another model"):
        write_embeddings(path)


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize("random", range(10))
def test_a_damaged_header_is_refused(random, complete, tmp_path):
    path = tmp_path / "e.npy"
    begin(path, n_done=40)
    if complete:
        write_embeddings(path)
    file = path if complete else tmp_path / "e.npy.part"
    content = file.read_bytes()
    random = np.random.RandomState(random)
    start = random.randint(60)
    damaged = content[:start] + random.bytes(random.randint(1, 30))
    damaged += content[len(damaged) :]
    file.write_bytes(damaged)
    with pytest.raises(ValueError, match=f"{file.name}' is not as it was written"):
        write_embeddings(path)


def of_other_order(array):
    file = io.BytesIO()
    np.save(file, np.asfortranarray(array))
    return file.getvalue()


def of_objects(array):
    file = io.BytesIO()
    np.save(file, array.astype(object))
    return file.getvalue()


def unclosed(array):
    """Return a header at which Python's tokenizer stops with an error of its own."""
    return b"\x93NUMPY\x01\x00\x06\x00('''(\n" + array.tobytes()


def with_more_bytes(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue() + b"\0"


@pytest.mark.parametrize(
    "form", [of_other_order, of_objects, unclosed, with_more_bytes]
)
def test_a_file_of_another_form_is_refused(form, tmp_path):
    path = tmp_path / "e.npy"
    array = np.array(write_embeddings(path))
    path.write_bytes(form(array))
    with pytest.raises(ValueError, match=r"is not as it was written .*: delete"):
        write_embeddings(path)


# -------------------------------------------------------------------------------- links


@is_linux
@every_file
def test_no_link_beside_a_file_is_written_to(name, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for beside in (".part", ".lock", ".journal.new", ".tmp"):
        folder = tmp_path / beside
        folder.mkdir()
        (folder / (name + beside)).symlink_to(victim)
        with suppress(OSError, ValueError):
            WRITERS[name](folder / name)
            assert not (folder / name).is_symlink()
        assert victim.read_text() == "precious"


@is_linux
def test_a_link_in_the_place_of_a_begun_file_is_refused(tmp_path):
    path, part = tmp_path / "e.npy", tmp_path / "e.npy.part"
    begin(path, n_done=40)
    elsewhere = shutil.move(part, tmp_path / "elsewhere")
    before = elsewhere.read_bytes()
    part.symlink_to(elsewhere)
    with pytest.raises(ValueError, match=r"e\.npy\.part' is a symbolic link"):
        write_embeddings(path)
    assert elsewhere.read_bytes() == before


@is_linux
@every_file
def test_a_finished_file_has_the_permissions_of_any_new_file(name, tmp_path):
    (tmp_path / "any").touch()
    WRITERS[name](tmp_path / name)
    assert (tmp_path / name).stat().st_mode == (tmp_path / "any").stat().st_mode


def test_a_file_of_soft_labels_is_what_is_returned(tmp_path):
    found = write_soft_labels(tmp_path / "out.npy")
    assert_array_equal(found, np.load(tmp_path / "out.npy"))
    assert Path(found.filename) == tmp_path / "out.npy"
    found = write_embeddings(tmp_path / "e.npy")
    assert Path(found.filename) == tmp_path / "e.npy"
