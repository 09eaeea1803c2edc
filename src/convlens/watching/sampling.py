"""How far figures of some of a batch's images may lie from those of all of them."""

from __future__ import annotations

import torch
from torch import Tensor


def squared_errors(x: Tensor, n_images: int, eps: float) -> Tensor:
    """Squared standard errors of a batch's figures, from the images that were looked at.

    With images as sampling units drawn without replacement: s²·(1 − k/N)/k, s² the unbiased
    variance over the k images (Cochran, Sampling Techniques, 1977, §2.6). A batch that was shuffled
    is such a draw, whichever positions are taken.

    Args:
        x: (k, …) the values of the k images looked at.
        n_images: N, images in the batch.
        eps: bound of near zero.

    Returns:
        (5,) for the mean, the variance, and the shares near zero, at most eps, and exactly zero;
        NaN where k is below 2 or there are no values.
    """
    k = x.shape[0]
    if k < 2 or not x.numel():
        real = torch.float64 if x.dtype == torch.float64 else torch.float32
        return torch.full((5,), torch.nan, dtype=real, device=x.device)
    values = x.detach().reshape(k, -1)
    values = values if values.dtype == torch.float64 else values.float()
    figures = torch.stack(
        [
            values.mean(1),
            (values - values.mean()).square().mean(1),
            *(
                c.to(values.dtype).mean(1)
                for c in (values.abs() <= eps, values <= eps, values == 0)
            ),
        ]
    )
    return figures.var(dim=1) * ((1 - k / n_images) / k)
