"""What a trained network answers: predictions, explanations, and the files that are deployed."""

from __future__ import annotations

from convlens.inference.classifier import Classifier
from convlens.inference.loading import load_classifier
from convlens.inference.prediction import Prediction

__all__ = ["Classifier", "Prediction", "load_classifier"]
