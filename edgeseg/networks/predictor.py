"""A torch network as the evaluation sees it: the reference that bundles are judged against."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgeseg.evaluation.evaluate import Prediction
from edgeseg.evaluation.state import ScorerSpec
from edgeseg.networks.base import Network
from edgeseg.scoring.head import Head
from edgeseg.scoring.kernels import HeadKernel
from edgeseg.scoring.scorers import valid_scorers

__all__ = ["TorchPredictor"]


class TorchPredictor:
    """Float32 on the CPU, the whole network in torch, float32 scores from its logits."""

    backend = "torch"
    precision = "float32"
    score_dtype = "float32"

    def __init__(
        self, module: Network, *, weights: Path | None = None, threads: int | None = None
    ) -> None:
        """Args:
        module: network; it is put into evaluation mode.
        weights: the file that its weights came from, named in state files by its sha256.
        threads: of torch and of the scoring kernel; default: torch's.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        self.network = module.structure.network
        self.artefact = hashlib.sha256(weights.read_bytes()).hexdigest() if weights else "none"
        self._module = module.eval()
        structure = module.structure
        self.scorers = valid_scorers(structure.void_index)
        self._head = Head(
            kind="identity",
            num_outputs=structure.num_outputs,
            num_known=structure.num_known,
            void_index=structure.void_index,
            factor=1,
        )
        self._kernel: HeadKernel | None = None
        self._size = (0, 0)

    def predict(self, frame: npt.NDArray[np.uint8], scorers: Sequence[ScorerSpec]) -> Prediction:
        """Class map and scores of a frame, uint8 ``[H, W, 3]`` BGR.

        Raises:
            UsageError: a size that the network does not take, or a scorer that it does not have.
        """
        kernel = self._kernel_for(frame.shape[0], frame.shape[1])
        logits = self.logits(frame)
        scores: dict[ScorerSpec, npt.NDArray[Any]] = {}
        for spec in scorers:
            kernel.set_scorer(spec.name, spec.temperature)
            class_map, score = kernel.run(logits)
            scores[spec] = score.copy()  # the kernel may reuse its buffer
        if not scorers:
            class_map, _ = kernel.run(logits)
        return Prediction(class_map, scores)

    def logits(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Logits of a frame (as :meth:`predict` takes it), float32 ``[C, H, W]``."""
        rgb = np.ascontiguousarray(frame[:, :, ::-1].transpose(2, 0, 1))
        with torch.inference_mode():
            x = torch.from_numpy(rgb).unsqueeze(0).float() / 255.0
            logits = self._module(x)[0].float().contiguous().numpy()
        return np.asarray(logits, dtype=np.float32)

    def _kernel_for(self, height: int, width: int) -> HeadKernel:
        if self._kernel is None or self._size != (height, width):
            self._module.check_size(height, width)
            if self._kernel is not None:
                self._kernel.close()
            self._kernel = HeadKernel(
                self._head,
                height,
                width,
                self.scorers[0],
                1.0,
                torch.get_num_threads(),
                np.float32,
            )
            self._size = (height, width)
        return self._kernel
