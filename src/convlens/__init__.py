"""convlens trains convolutional networks and lets you see inside them while they train.

    import convlens as cl

    dls = cl.mnist(batch_size=512)
    learn = cl.Learner(dls, cl.simple_cnn(1, 10, norm="batch"), metrics=[cl.accuracy],
                       callbacks=[cl.ActivationStats()])
    learn.fit_one_cycle(5, lr_max=0.1)
    learn.activation_stats.color_dim(-2)

Importing it loads nothing else: torch, matplotlib and Bokeh come with the first name that needs
them. Where each name lives is listed in ``docs/architecture.md``.
"""

from __future__ import annotations

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
