"""The command with 400 random images in place of MNIST: a training takes a second."""

from __future__ import annotations

import numpy as np

from convlens import data


def small_mnist(batch_size, device, seed):
    """Stands for `convlens.data.mnist`."""
    x = np.random.default_rng(0).integers(0, 256, (400, 28, 28), np.uint8)
    return data.from_arrays(
        x, np.arange(400) % 10, layout="NHW", valid=0.2, batch_size=batch_size, device=device,
        seed=seed, name="mnist",
    )  # fmt: skip


if __name__ == "__main__":
    from convlens.__main__ import main

    data.mnist = small_mnist
    main()
