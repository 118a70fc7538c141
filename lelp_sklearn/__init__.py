"""Few-class knowledge distillation with subclass targets, for scikit-learn users."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lelp_sklearn._diagnostics.display import SubclassDisplay
from lelp_sklearn._diagnostics.report import SubclassReport, subclass_report
from lelp_sklearn._diagnostics.scoring import labeled_scorer
from lelp_sklearn._diagnostics.table import subclass_table
from lelp_sklearn._meta import LELPMetaClassifier
from lelp_sklearn._projector import LELPProjector
from lelp_sklearn.exceptions import (
    ClassOrderWarning,
    NoLinearHeadWarning,
    NoTeacherWarning,
    OverfittedTeacherWarning,
    ProbabilitiesAsLogitsWarning,
)

if TYPE_CHECKING:
    from lelp_sklearn._extractor import EmbeddingExtractor
    from lelp_sklearn._student import LELPStudentClassifier
    from lelp_sklearn._student_cv import LELPStudentClassifierCV

__version__ = "0.2.0"

__all__ = [
    "ClassOrderWarning",
    "EmbeddingExtractor",
    "LELPMetaClassifier",
    "LELPProjector",
    "LELPStudentClassifier",
    "LELPStudentClassifierCV",
    "NoLinearHeadWarning",
    "NoTeacherWarning",
    "OverfittedTeacherWarning",
    "ProbabilitiesAsLogitsWarning",
    "SubclassDisplay",
    "SubclassReport",
    "__version__",
    "labeled_scorer",
    "subclass_report",
    "subclass_table",
]


# These need torch, whose import takes seconds; the projector does not.
_WITH_TORCH = {
    "EmbeddingExtractor": "lelp_sklearn._extractor",
    "LELPStudentClassifier": "lelp_sklearn._student",
    "LELPStudentClassifierCV": "lelp_sklearn._student_cv",
}


def __getattr__(name: str) -> Any:
    if name in _WITH_TORCH:
        return getattr(import_module(_WITH_TORCH[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
