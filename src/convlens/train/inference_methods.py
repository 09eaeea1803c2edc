"""`InferenceMethods`: what a `Learner` does with its trained model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from convlens.core.terminal import say
from convlens.data import Batches
from convlens.data.items import CLASSES
from convlens.data.prediction_inputs import PredictionInputs
from convlens.errors import ArgumentError
from convlens.inference import Classifier, Prediction
from convlens.inference.augmentation import averaged, check_tta, views
from convlens.inference.classifier import check_answers
from convlens.inference.compared_images import of_loaders
from convlens.inference.explanation import BATCH, Explanation, explain
from convlens.inference.export import Export, check_input, export
from convlens.train.interpretation import interpret
from convlens.train.loop import TrainingLoop

if TYPE_CHECKING:
    from convlens.data.prediction_inputs import Images
    from convlens.plots import Interpretation


class InferenceMethods(TrainingLoop):
    """Validates, predicts, interprets, explains and exports; see `Learner`."""

    _tta: str | None = None

    def validate(
        self, batches: Batches | None = None, *, tta: str | None = None
    ) -> dict[str, float]:
        """Loss and metrics over all items of ``batches``, ``dls.valid`` if None.

        Args:
            batches: pairs (x, y).
            tta: test-time augmentation: "flip" averages the probabilities of each image and its
                mirror image; loss and metrics get scores with these probabilities.

        Returns:
            ``{"loss": …, "accuracy": …}``: means over all items (weighted, of a loss with class
            weights), metrics of torchmetrics over all items; ``"recall[cat]"`` and so on of one
            that is computed for each class.

        Raises:
            ArgumentError: if there is nothing to validate on, or ``tta`` is not known.
            TrainingError: if model, loss or a metric does not fit the batches.
        """
        check_tta(tta)
        self._tta = tta
        try:
            return super().validate(batches)
        finally:
            self._tta = None

    def _run_model(self, x: Tensor) -> Any:  # noqa: ANN401 - a model may return anything
        if self._tta is None:
            return super()._run_model(x)
        outputs = [super(InferenceMethods, self)._run_model(view) for view in views(x, self._tta)]
        kind = self.dls.kind
        check_answers(outputs[0], len(x), self.dls.classes, kind)
        return averaged(outputs, kind)

    def predict(
        self,
        x: Images,
        batch_size: int = 512,
        *,
        normalized: bool | None = None,
        tta: str | None = None,
        strict: bool | None = None,
    ) -> Prediction:
        """Say what is on images.

        Files, folders and Pillow images are decoded, scaled and cut as the validation images were.
        Of a folder all image files are taken, also those in folders below, in natural order; files
        that cannot be read are listed in ``skipped``. Tensors and arrays are pixels unless
        ``normalized`` says otherwise: uint8 from 0 to 255, floats from 0 to 1 as `load_image` gives
        them, or from 0 to 255. Pixels of another size are scaled as files are.

            >>> dls = cl.from_arrays(torch.rand(8, 9, 9), [0, 1] * 4, layout="NHW")
            >>> learn = cl.Learner(dls, cl.simple_cnn(1, 2), run=None, progress=False)
            >>> learn.predict(torch.rand(3, 1, 9, 9)).probabilities.shape
            torch.Size([3, 2])

        Args:
            x: an image file, a folder, a Pillow image, a tensor or array of one image (C, H, W) or
                of several (N, C, H, W), or (N, H, W) where the network takes one channel; or a list
                or a generator of files and folders, of Pillow images, or of images (C, H, W).
            batch_size: images at a time.
            normalized: True for floats as the loaders give them; False for floats in the units of
                those given to `from_arrays`, where these were no pixels from 0 to 1 or to 255.
            tta: test-time augmentation: "flip" averages the probabilities of each image and its
                mirror image.
            strict: whether a file that cannot be read is an error; None for files that are named,
                and not for those found in a folder.

        Raises:
            ArgumentError: if ``x`` is not images with the right channels, or their normalization
                is not known.
            DataError: if an image cannot be read.
            TrainingError: if the model cannot take them, or its output is of another shape than
                ``dls.kind`` needs.
        """
        return self._classifier().predict(
            x, batch_size, normalized=normalized, tta=tta, strict=strict
        )

    def interpret(self, batches: Batches | None = None) -> Interpretation:
        """Run the validation and say what the present weights get wrong, in bounded memory.

        Of the images the 32 of the largest loss are kept, and one of each confusion of two
        classes. What a fit recorded with the callback `Pictures` is read without running anything
        by ``cl.open_run(path).interpret(epoch)``.

            >>> x, y = torch.rand(40, 1, 28, 28), torch.arange(40) % 10
            >>> dls = cl.from_arrays(x, y, layout="NCHW", valid=0.5)
            >>> learn = cl.Learner(dls, cl.simple_cnn(1, 10), run=None, progress=False)
            >>> found = learn.interpret()
            >>> found.confusion.shape, len(found.top_losses(3))
            ((10, 10), 3)

        Args:
            batches: (x, y) to run on; ``dls.valid`` if None.

        Raises:
            ArgumentError: if there is nothing to validate on, or the data is not of single classes.
        """
        with self._mode(training=False), torch.no_grad():
            return interpret(self, self._run_as_in_validation, batches)

    def explain(
        self,
        images: Images,
        layer: str | None = None,
        target: int | str | Sequence[int | str] | None = None,
        *,
        normalized: bool | None = None,
    ) -> Explanation:
        """Map which places of images speak for a class, by Grad-CAM, and check the maps.

        The check: the maps of the same network with random weights. The model runs in evaluation
        mode and is left as it was.

            >>> dls = cl.from_arrays(torch.rand(8, 28, 28), [0, 1] * 4, layout="NHW")
            >>> learn = cl.Learner(dls, cl.simple_cnn(1, 2), run=None, progress=False)
            >>> found = learn.explain(torch.rand(3, 1, 28, 28), target=1)
            >>> found, found.maps.shape
            (Explanation(3 images by layer '2.1'), (3, 28, 28))
            >>> print(found.randomization)
            Rank correlation with the maps of random weights: ...

        Args:
            images: in any form that `predict` takes.
            layer: a module's name, whose output is (N, C, h, w), or (N, tokens, C) with a square
                grid of tokens. None takes the last layer with at least 4 × 4 units, where there is
                none the last with more than one.
            target: a class by its number or name, or one for each image; None for the predicted
                one.
            normalized: as for `predict`.

        Raises:
            LayerNotFoundError: if there is no such layer, with the closest names.
            ArgumentError: if the layer's output has no grid, or an argument cannot work.
            TrainingError: if the model's output is not scores of classes, or does not depend on
                the layer.
        """
        if self.dls.kind != CLASSES:
            raise ArgumentError(f"explain is for classes, but the data has {self.dls.kind}.")
        transform = self.dls.input_transform
        parts = PredictionInputs(images, transform, BATCH, normalized=normalized)
        on_device = (part.to(self.device) for part in parts)
        return explain(self.model, on_device, self.dls.to_uint8, self.dls.classes, layer, target)

    def export(self, folder: str | Path, *, overwrite: bool = False) -> Export:
        """Write the network to a folder from which it can be deployed, and say so in one line.

        The folder holds ``model.safetensors``; ``classifier.json`` with the architecture, classes,
        preprocessing, versions and hashes; and ``model.onnx``, which takes ``images``, uint8 (N, H,
        W, C) of the input's size, for any N, and gives ``probabilities`` (N, K), or ``values`` (N,)
        for numbers. Scaling and normalization are inside; decoding, resizing and cutting are what
        `load_classifier` does with the JSON's ``input``.

        Before that is said, ONNX Runtime and the reloaded folder are compared with `predict`, in
        float32, on up to 256 images of the validation set, and images to train on where these are
        fewer than 100: probabilities within 1e-4, the same most probable class. With fewer than 100
        altogether, "written" is said instead of "exported". The folder appears when all is done.

            >>> dls = cl.from_arrays(torch.rand(300, 28, 28), [0, 1] * 150, layout="NHW", valid=0.5)
            >>> learn = cl.Learner(dls, cl.simple_cnn(1, 2, norm="batch"), progress=False)
            >>> learn.fit(1)
            >>> exported = learn.export("classifier")
            exported classifier: 2... kB; ONNX Runtime and the reloaded folder agree with ...
            >>> sorted(file.name for file in exported.path.iterdir())
            ['classifier.json', 'model.onnx', 'model.safetensors']
            >>> cl.load_classifier("classifier").predict(torch.rand(2, 28, 28)).names
            ('...', '...')

        Args:
            folder: a new or empty folder, in one that exists.
            overwrite: replace an earlier export there.

        Raises:
            ArgumentError: if the folder is in use, or the network cannot be exported.
            CheckpointError: if the folder cannot be written.
            MissingLibraryError: if onnx, onnxscript or onnxruntime is not installed.
            TrainingError: if the export does not agree with `predict`; it is removed.
        """
        classifier = self._classifier()
        check_input(classifier)
        images, names = of_loaders(self.dls)
        found = export(classifier, folder, images, names=names, overwrite=overwrite)
        say(str(found))
        return found

    def _classifier(self) -> Classifier:
        return Classifier(
            self.model,
            self.dls.input_transform,
            self.dls.classes,
            self.dls.kind,
            forward=self._run_as_in_validation,
        )

    def _run_as_in_validation(self, x: Tensor) -> Any:  # noqa: ANN401 - a model may return anything
        with self.stepper.autocast():
            return self._run_model(self._on_device(x))
