"""A purifier as a preprocessor of the Adversarial Robustness Toolbox. Extra: `pureebm[art]`.

classifier = PyTorchClassifier(..., clip_values=(0, 1), preprocessing_defences=[PurifyingPreprocessor(purifier)])
classifier.fit(x, y)  # trains on purified images; predictions see images as they are
"""

from __future__ import annotations

import hashlib
from typing import Any

from torch import Tensor

from pureebm.errors import InputError
from pureebm.purify.purifier import Purifier

try:
    from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
except ImportError as error:
    raise InputError("the Adversarial Robustness Toolbox is not installed: pip install 'pureebm[art]'") from error


class PurifyingPreprocessor(PreprocessorPyTorch):  # type: ignore[misc]
    """Purifies what a classifier is trained on; with `apply_predict`, also what it is asked about.

    Args:
        purifier: see `Purifier`.
        clip_values: the range of the images; the toolbox's classifiers have the same argument.
        channels_first: images are (N, 3, H, W), else (N, H, W, 3).
        seed: fixes every draw. The noise of an image is a function of the seed and of its pixels, so that batches and
            their order change nothing.
        apply_fit, apply_predict: where it acts. The defense against poison is the first alone.

    Where a gradient is asked for, `forward` and `estimate_forward` give the purified images with the gradient of the
    identity (BPDA, arXiv 1802.00420).
    """

    params = ["clip_values", "channels_first", "seed"]

    def __init__(
        self,
        purifier: Purifier,
        *,
        clip_values: tuple[float, float] = (0.0, 1.0),
        channels_first: bool = True,
        seed: int = 0,
        apply_fit: bool = True,
        apply_predict: bool = False,
    ) -> None:
        super().__init__(device_type="cpu", is_fitted=True, apply_fit=apply_fit, apply_predict=apply_predict)
        self.purifier, self.clip_values = purifier, clip_values
        self.channels_first, self.seed = channels_first, seed
        self._check_params()

    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        """Images in the range of `clip_values` -> purified ones, of the same shape, type and device; `y` as it is."""
        low, high = self.clip_values
        images = x.detach() if self.channels_first else x.detach().movedim(-1, 1)
        ids = [hashlib.sha256(image.contiguous().cpu().numpy().tobytes()).hexdigest() for image in images]
        out = self.purifier((images.float() - low) / (high - low), seed=self.seed, ids=ids) * (high - low) + low
        out = (out if self.channels_first else out.movedim(1, -1)).to(x.dtype)
        return x + (out - x).detach() if x.requires_grad else out, y

    def _check_params(self) -> None:
        low, high = self.clip_values
        if not low < high:
            raise InputError(f"clip_values must be (low, high), got {self.clip_values}")
