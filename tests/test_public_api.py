"""What users may import, and that it is documented and shipped as promised."""

import ast
import importlib.metadata
import inspect
import textwrap
import tomllib
from importlib.resources import files
from pathlib import Path
from types import ModuleType

import pytest
from numpydoc.validate import validate
from sklearn.base import BaseEstimator

import lelp_sklearn

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
PUBLIC = {name: getattr(lelp_sklearn, name) for name in lelp_sklearn.__all__}
CLASSES = [thing for thing in PUBLIC.values() if inspect.isclass(thing)]
ESTIMATORS = [thing for thing in CLASSES if issubclass(thing, BaseEstimator)]


def documented_names():
    """Name the public classes, functions and the methods that they define."""
    for thing in PUBLIC.values():
        if inspect.isclass(thing):
            methods = [
                name
                for name, member in vars(thing).items()
                if not name.startswith("_") and callable(inspect.unwrap(member))
            ]
            yield thing.__module__ + "." + thing.__qualname__
            yield from (f"{thing.__module__}.{thing.__qualname__}.{m}" for m in methods)
        elif inspect.isfunction(thing):
            yield f"{thing.__module__}.{thing.__qualname__}"


def test_all_names_what_is_there():
    there = {
        name
        for name in dir(lelp_sklearn)
        if not name.startswith("_")
        and not isinstance(getattr(lelp_sklearn, name), ModuleType)
    }
    assert {name for name in PUBLIC if name != "__version__"} == there


def test_version_is_the_one_installed():
    assert lelp_sklearn.__version__ == importlib.metadata.version("lelp-sklearn")


def test_types_are_shipped():
    assert files("lelp_sklearn").joinpath("py.typed").is_file()


@pytest.mark.parametrize("name", documented_names())
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
