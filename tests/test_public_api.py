"""What users may import, and that it is documented and shipped as promised."""

import ast
import importlib.metadata
import inspect
import textwrap
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest
from numpydoc.validate import validate
from sklearn.base import BaseEstimator

import lelp_sklearn
from lelp_sklearn import losses

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
MODULES = [lelp_sklearn, losses]


def is_ours(thing):
    return (getattr(thing, "__module__", None) or "").startswith("lelp_sklearn")


def defined_in(module):
    """Name what a module holds of this package under a public name."""
    return {
        name
        for name, thing in vars(module).items()
        if not name.startswith("_") and is_ours(thing)
    }


PUBLIC = [
    getattr(module, name)
    for module in MODULES
    for name in module.__all__
    if name != "__version__"
]
ESTIMATORS = [
    thing
    for thing in PUBLIC
    if inspect.isclass(thing) and issubclass(thing, BaseEstimator)
]


def documented_names():
    """Name the public classes, the public functions and the methods of the classes."""
    for thing in PUBLIC:
        name = f"{thing.__module__}.{thing.__qualname__}"
        yield name
        if inspect.isclass(thing):
            methods = inspect.getmembers(thing, callable)
            yield from (
                f"{name}.{method}"
                for method, member in methods
                if not method.startswith("_") and is_ours(member)
            )


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_all_names_what_is_there(module):
    assert defined_in(module) <= set(module.__all__)
    assert set(module.__all__) <= set(dir(module))
    assert all(hasattr(module, name) for name in module.__all__)


def test_version_is_the_one_installed():
    assert lelp_sklearn.__version__ == importlib.metadata.version("lelp-sklearn")


def test_types_are_shipped():
    assert files("lelp_sklearn").joinpath("py.typed").is_file()


@pytest.mark.parametrize("name", list(documented_names()))
def test_docstring_follows_numpydoc(name):
    settings = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))
    exempt = settings["tool"]["numpydoc_validation"]["checks"]
    errors = [error for error in validate(name)["errors"] if error[0] not in exempt]
    assert not errors


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_init_only_assigns(estimator):
    source = textwrap.dedent(inspect.getsource(estimator.__init__))
    (function,) = ast.parse(source).body
    parameters = list(inspect.signature(estimator).parameters)
    assigned = [ast.unparse(statement) for statement in function.body]
    assert assigned == [f"self.{name} = {name}" for name in parameters]
