"""Importing the package costs neither torch nor a compilation."""

import subprocess
import sys
import textwrap

import pytest

from lelp_sklearn._subclasses.kernels.jit import can_compile


def run_in_new_process(code):
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("library", ["torch", "numba", "llvmlite"])
def test_import_loads_what_is_slow_at_its_first_use(library):
    run_in_new_process(
        f"""
        import sys
        import lelp_sklearn

        lelp_sklearn.LELPProjector
        assert "{library}" not in sys.modules
        """
    )


def test_a_student_of_scikit_learn_needs_no_torch():
    run_in_new_process(
        """
        import sys
        import numpy as np
        from sklearn.linear_model import LogisticRegression
        from lelp_sklearn import LELPMetaClassifier, LELPProjector

        X = np.random.RandomState(0).normal(size=(60, 4))
        y = np.arange(60) % 2
        head = np.ones((1, 4)), np.zeros(1)
        projector = LELPProjector(2, head=head, splitter="random")
        classifier = LELPMetaClassifier(LogisticRegression(), projector=projector)
        classifier.fit(X, y, teacher_embeddings=X).predict_proba(X)
        assert "torch" not in sys.modules
        """
    )


def test_import_compiles_nothing():
    run_in_new_process(
        """
        from numba.core import event

        with event.install_recorder("numba:compile") as compilations:
            import lelp_sklearn
            lelp_sklearn.LELPProjector
        assert not compilations.buffer
        """
    )


@pytest.mark.skipif(not can_compile(), reason="no kernel is compiled")
def test_kernels_wait_for_their_first_call():
    """An eager signature would be compiled, or read from the cache, at import."""
    run_in_new_process(
        """
        from numba.core.registry import CPUDispatcher
        from lelp_sklearn._subclasses.kernels import class_sums, soft_labels

        values = [*vars(soft_labels).values(), *vars(class_sums).values()]
        found = [value for value in values if isinstance(value, CPUDispatcher)]
        assert found
        assert not any(kernel.signatures for kernel in found)
        """
    )


def test_import_leaves_global_generators_alone():
    run_in_new_process(
        """
        import numpy as np
        import torch

        np.random.seed(0)
        torch.manual_seed(0)
        import lelp_sklearn

        lelp_sklearn.LELPStudentClassifier
        assert np.random.rand() == np.random.RandomState(0).rand()
        generator = torch.Generator().manual_seed(0)
        assert torch.rand(()) == torch.rand((), generator=generator)
        """
    )


def test_unknown_name_is_an_attribute_error():
    import lelp_sklearn

    with pytest.raises(AttributeError, match="LELPRegressor"):
        lelp_sklearn.LELPRegressor  # noqa: B018 (the look-up is what is tested)
