"""The house plan: who may import whom, and how long a file may become."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

import lelp_sklearn

PACKAGE = Path(lelp_sklearn.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST_FILE = 400

# A file imports from strictly lower levels only. One that is not named here is a leaf
# of its folder; a file at the top of the package has to be named.
LEVELS = {
    "__init__": 9,
    "_student": 8,
    "_fitting": 7,
    "_extractor": 6,
    "_display": 6,
    "_projector": 6,
    "_report": 5,
    "_scoring": 5,
    "_reading": 5,
    "_saving": 5,
    "_class_predictions": 4,
    "_targets": 4,
    "_soft_labels": 4,
    "_teachers": 3,
    "losses": 2,
    "_projection.kmeans": 5,
    "_projection.coordinates": 4,
    "_projection.dask_rows": 4,
    "_projection.splitters": 3,
    "_projection.solvers": 3,
    "_projection.starts": 3,
    "_projection.reading": 3,
    "_projection.dask_arrays": 3,
    "_projection.statistics": 2,
    "_projection.structure": 3,
    "_projection.clustering": 2,
    "_projection.digests": 2,
    "_projection.heads": 2,
    "_projection.progress": 2,
    "_projection.soft_labels": 2,
    "_projection.tensor_passes": 0,
    "_projection.tensor_kernels": -1,
    "_projection.tiles": 0,
    "_projection.tensors": -1,
    "_projection.compilation": -2,
    "_projection.fallback": 0,
    "_projection.threads": -1,
    "_projection.instructions": -1,
    "_training.run": 4,
    "_training.export": 3,
    "_training.loop": 3,
    "_training.batches": 2,
    "_training.graphs": 2,
    "_training.modules": 3,
    "_training.teachers": 3,
    "_common.export_validation": 1,
    "_common.resumable": 1,
    "_common.callers": -1,
    "_common.numeric_validation": -1,
    "_common.sealing": 1,
    "_common.thread_locks": -3,
    "_common.typing": -2,
    "_common.exceptions": -1,
}
LEAVES = {"_common": 0, "_projection": 1, "_training": 1}

# In the training workshop scikit-learn may lend utilities, never an estimator.
SKLEARN_UTILITIES = ("sklearn.utils", "sklearn.exceptions")

NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def name_inside_package(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def level(module):
    folder, _, _ = module.partition(".")
    return LEVELS[module] if module in LEVELS else LEAVES[folder]


def imported_names(path):
    """Yield the absolute name of all that a file imports, inside functions too."""
    package = ("lelp_sklearn", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            source = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{source}.{alias.name}" for alias in node.names)


def imported_modules(path):
    """Yield the modules of this package that a file imports, named inside it."""
    for name in imported_names(path):
        root, _, inside = name.partition(".")
        if root != "lelp_sklearn":
            continue
        candidates = (inside, inside.rpartition(".")[0], f"{inside}.__init__")
        known = {name_inside_package(file) for file in FILES}
        yield next((c for c in candidates if c in known), "__init__")


def is_or_belongs_to(name, packages):
    return any(name == p or name.startswith(f"{p}.") for p in packages)


def lines_of_code(path):
    """Count the lines that carry code: no docstring, no comment, no blank line."""
    source = path.read_text(encoding="utf-8")
    documentation = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (
            ast.get_docstring(node) is not None
        ):
            docstring = node.body[0]
            documentation.update(range(docstring.lineno, docstring.end_lineno + 1))
    code = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - documentation)


def test_every_level_is_that_of_a_file():
    assert set(LEVELS) <= {name_inside_package(path) for path in FILES}


every_file = pytest.mark.parametrize("path", FILES, ids=name_inside_package)


@every_file
def test_a_file_imports_from_lower_levels_only(path):
    own = level(name_inside_package(path))
    upwards = {m for m in imported_modules(path) if level(m) >= own}
    assert not upwards


@every_file
def test_the_two_workshops_never_meet(path):
    workshops = {"_projection", "_training"}
    inside = name_inside_package(path).partition(".")[0]
    met = {module.partition(".")[0] for module in imported_modules(path)}
    assert inside not in workshops or not met & (workshops - {inside})


@every_file
def test_each_workshop_keeps_to_its_own_libraries(path):
    folder, _, file = name_inside_package(path).partition(".")
    names = set(imported_names(path))
    if folder == "_projection" and not file.startswith("tensor"):
        assert not {n for n in names if is_or_belongs_to(n, ["torch"])}
    if file != "tensor_kernels":
        assert not {n for n in names if is_or_belongs_to(n, ["triton"])}
    if not file.startswith("dask_"):
        assert not {n for n in names if is_or_belongs_to(n, ["dask", "distributed"])}
    if folder == "_training":
        assert not {n for n in names if is_or_belongs_to(n, ["numba"])}
        estimators = {n for n in names if is_or_belongs_to(n, ["sklearn"])}
        assert all(is_or_belongs_to(n, SKLEARN_UTILITIES) for n in estimators)


@every_file
def test_no_file_is_too_long(path):
    assert lines_of_code(path) <= LONGEST_FILE
