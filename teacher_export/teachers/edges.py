"""Makes edge maps in place of features (the paper's Fig. 8 and 9), one channel for each level."""

import cv2
import numpy as np

from teacher_export.frameworks import torch
from teacher_export.teachers.interface import Extractor, refuse

NAMES = ("edges_1", "edges_2", "edges_3")
CANNY = (100, 200)  # OpenCV's lower and upper threshold


def load_sobel(weights: str | None, seed: int, device: torch.device) -> Extractor:
    """Extracts the length of the grey photo's Sobel gradient, in units of the largest possible
    one.
    """
    refuse(weights, "sobel", "there is nothing learnt in it")
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device=device) / (4 * 2**0.5)
    kernel = torch.stack([across, across.T])[:, None]

    def edges(grey: torch.Tensor) -> torch.Tensor:
        padded = torch.nn.functional.pad(grey, (1, 1, 1, 1), mode="replicate")
        return torch.linalg.vector_norm(torch.nn.functional.conv2d(padded, kernel.to(grey.dtype)), dim=1, keepdim=True)

    return Extractor(
        forward=lambda photos: [edges(grey) for grey in _scales(photos)],
        names=NAMES,
        weights_origin="Sobel",
        weights_sha256="sobel 1",
        parallel=True,
    )


def load_canny(weights: str | None, seed: int, device: torch.device) -> Extractor:
    """Extracts OpenCV's Canny edges of the grey photo, 0 or 1."""
    refuse(weights, "canny", "there is nothing learnt in it")

    def edges(grey: torch.Tensor) -> torch.Tensor:
        pictures = (255 * grey[:, 0].float()).round().to(torch.uint8).cpu().numpy()
        found = np.stack([cv2.Canny(picture, *CANNY) for picture in pictures])
        return torch.from_numpy(found > 0)[:, None].to(grey)

    return Extractor(
        forward=lambda photos: [edges(grey) for grey in _scales(photos)],
        names=NAMES,
        weights_origin=f"Canny(thresholds={CANNY[0]}, {CANNY[1]})",
        weights_sha256=f"canny 1 {CANNY}",
        parallel=True,
    )


def _scales(photos: torch.Tensor) -> list[torch.Tensor]:
    """Returns the grey photo (b, 1, h, h) at P, P/2 and P/4, from photos (b, 3, 2P, 2P)."""
    grey = photos.mean(1, keepdim=True)
    return [torch.nn.functional.avg_pool2d(grey, 2**level) for level in (1, 2, 3)]
