"""The tree of exceptions."""

from __future__ import annotations

import warnings

import pytest

from convlens import errors


def test_all_have_one_base_and_are_what_python_expects() -> None:
    classes = [value for name, value in vars(errors).items() if name.endswith("Error")]
    assert len(classes) == 9
    assert all(issubclass(c, errors.ConvlensError) for c in classes)
    assert issubclass(errors.ArgumentError, ValueError)
    assert issubclass(errors.LayerNotFoundError, LookupError)
    assert issubclass(errors.MissingLibraryError, ImportError)
    assert issubclass(errors.CheckpointError, errors.RunError)
    assert issubclass(errors.NonFiniteLossError, errors.TrainingError)


def test_a_warning_ends_nothing_even_where_warnings_are_errors() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        errors.warn("nothing was seen")
    with pytest.warns(errors.ConvlensWarning, match="nothing was seen"):
        errors.warn("nothing was seen")
