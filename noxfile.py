"""Every command of the project, each in an environment of its own.

``python -m pip install nox`` is all that a fresh machine needs. ``python -m nox``
lints, checks types and runs the tests; ``python -m nox --list`` names the rest, and
what follows ``--`` is handed on, as in ``python -m nox -s tests -- -k rotation``.
"""

import sys
from itertools import chain, product
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"

PYPROJECT = nox.project.load_toml("pyproject.toml")
CONSTRAINTS = Path("constraints.txt").resolve()

# BLAS and OpenMP keep to one thread where several processes share the cores. Models of
# text come from packages: nothing is asked of a hub.
TEST_ENVIRONMENT = {
    "SCIPY_ARRAY_API": "1",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}

# The tests of a file stay together: what they share is made once.
IN_PARALLEL = "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"

FIRST_USE = """
from sklearn.datasets import load_digits
import lelp_sklearn

X, y = load_digits(return_X_y=True)
soft = lelp_sklearn.LELPProjector(n_subclasses=3).fit_transform(X, y % 2)
assert soft.shape == (len(X), 6), soft.shape
student = lelp_sklearn.LELPStudentClassifier(max_epochs=2, random_state=0)
student.fit(X / 16, y % 2, soft_targets=soft)
assert student.predict(X / 16).shape == y.shape
print(lelp_sklearn.__version__, "from", lelp_sklearn.__file__)
"""


def group(*names: str) -> tuple[str, ...]:
    return nox.project.dependency_groups(PYPROJECT, *names)


def install(session: nox.Session, *what: str) -> None:
    session.install("-c", str(CONSTRAINTS), *what)


@nox.session(default=False)
def demo(session: nox.Session) -> None:
    """Distil a teacher of two-digit numbers and compare the methods."""
    install(session, "-e", ".[plot]")
    session.run("python", "benchmarks/demo/run.py", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests and the examples in the docstrings."""
    install(session, "-e", ".[all]", *group("test"))
    session.run("pytest", *IN_PARALLEL, *session.posargs, env=TEST_ENVIRONMENT)


@nox.session(default=False)
def fuzz(session: nox.Session) -> None:
    """Try random cases, 3000 of each test or as many as the first argument says."""
    install(session, "-e", ".[all]", *group("test"))
    n_cases, *options = session.posargs or ["3000"]
    profile = "--hypothesis-profile=fuzz", "--hypothesis-show-statistics"
    environment = {**TEST_ENVIRONMENT, "FUZZ_CASES": n_cases}
    session.run("pytest", "tests/fuzz", *profile, *options, env=environment)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format, spelling and which layer imports from which."""
    install(session, *group("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("codespell")
    session.run("lint-imports", "--no-logo", "--no-cache")
    session.run("repo-review", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types, strictly wherever numbers are made."""
    # What is only read needs no bytecode, which takes longer to make than the rest.
    install(session, "--no-compile", "-e", ".[all]", *group("types"))
    session.run("mypy", *session.posargs)


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """Build the pages, warnings being errors, and run the examples in them."""
    install(session, "-e", ".[all]", *group("docs"))
    for builder in ("html", "doctest"):
        output = f"docs/_build/{builder}"
        session.run("sphinx-build", "-W", "-n", "-b", builder, "docs", output)


@nox.session(name="docs-browser", default=False)
def docs_browser(session: nox.Session) -> None:
    """Open every page in Debian's chromium (`apt-get install chromium-driver`)."""
    install(session, "-e", ".[all]", *group("docs"), "selenium")
    session.run("sphinx-build", "-W", "-n", "docs", "docs/_build/html")
    session.run("python", "docs/browser.py", *session.posargs)


@nox.session(default=False)
def examples(session: nox.Session) -> None:
    """Train students with other trainers, and compare them with ours."""
    install(session, "-e", ".", *group("examples"))
    # With several GPUs each trainer would share out the batches in its own way.
    environment = {**TEST_ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ""}
    folder = Path("docs/examples")
    for script in sorted(folder.glob("*_student.py")):
        session.run("python", str(script), env=environment)
    agreement = str(folder / "agreement.py")
    session.run("python", agreement, *session.posargs, env=environment)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Take a quick look at the speed; `-- training/run.py` runs another benchmark."""
    install(session, "-e", ".[all]")
    script, *options = session.posargs or ["speed/run.py"]
    session.run("python", f"benchmarks/{script}", *options)


@nox.session(default=False)
def release(session: nox.Session) -> None:
    """Build and check sdist and wheel, and use each in clean environments.

    The Pythons are those that the arguments name, or the lowest and the newest.
    """
    install(session, "build", "twine", "virtualenv")
    folder = Path(session.create_tmp()).resolve()
    for old in folder.glob("lelp_sklearn-*"):
        old.unlink()
    session.run("python", "-m", "build", "--outdir", str(folder))
    archives = sorted(folder.glob("lelp_sklearn-*"))
    session.run("twine", "check", "--strict", *map(str, archives))
    version = archives[0].name.removeprefix("lelp_sklearn-").split("-")[0]
    if f"## [{version}]" not in Path("CHANGELOG.md").read_text("utf-8"):
        session.error(f"CHANGELOG.md has no heading for {version}.")
    python = folder / "clean" / ("Scripts" if sys.platform == "win32" else "bin")
    for name, archive in product(session.posargs or ("3.11", "3.14"), archives):
        session.run("virtualenv", "--clear", "-q", "-p", name, str(folder / "clean"))
        clean = [str(python / "python"), "-I"]
        pip = [*clean, "-m", "pip", "install", "-q", "-c", str(CONSTRAINTS)]
        session.run(*pip, str(archive), external=True)
        session.run(*clean, "-c", FIRST_USE, external=True)


@nox.session(name="tests-min", default=False)
def tests_min(session: nox.Session) -> None:
    """Run the tests with the lowest versions that pyproject.toml declares."""
    floors = Path(session.create_tmp()).resolve() / "floors.txt"
    project = PYPROJECT["project"]
    extras = chain.from_iterable(project["optional-dependencies"].values())
    declared = [*project["dependencies"], *extras, *group("test")]
    lowest = [entry.replace(">=", "==") for entry in declared if ">=" in entry]
    # The lowest onnxscript hands it truth values where later ones want integers.
    lowest.append("protobuf<6")
    floors.write_text("\n".join(lowest))
    session.install("-c", str(floors), "-e", ".[all]", *group("test"))
    session.run("pytest", *IN_PARALLEL, *session.posargs, env=TEST_ENVIRONMENT)
