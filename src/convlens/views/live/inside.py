"""Inside a layer: its feature maps, kernels, one unit of it, and what was kept of which epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from convlens.core.snapshots import (
    EffectiveFieldMap,
    FeatureMaps,
    FieldIntervals,
    Kernels,
    Probes,
)
from convlens.runs import Run
from convlens.views import panels as shown
from convlens.views.live.models import Panels


@dataclass(frozen=True)
class Looking:
    """What a person looks at in a layer.

    Attributes:
        layer: its name.
        maps: the module whose feature maps are shown: the layer, or what takes its output, such as
            its ReLU; empty for the layer.
        epoch: the epoch whose maps and kernels are shown, or the newest before it; None for the
            newest of all.
        choice: probe image, channel and unit.
        shared: whether all channels' maps have one scale.
    """

    layer: str = ""
    maps: str = ""
    epoch: int | None = None
    choice: shown.Choice = field(default_factory=shown.Choice)
    shared: bool = False

    @property
    def of(self) -> str:
        """The module whose feature maps are shown."""
        return self.maps or self.layer


class Inside:
    """The panels inside a layer.

    Args:
        run: where the snapshots are read.
        panels: where they are put.
    """

    def __init__(self, run: Run, panels: Panels) -> None:
        self._run, self._panels = run, panels
        self._probes: Probes | None = None

    def epochs(self, looking: Looking) -> list[int]:
        """The epochs of which something of what is looked at was kept."""
        kept = {*self._run.snapshot_epochs(FeatureMaps, looking.of)}
        return sorted(kept | {*self._run.snapshot_epochs(Kernels, looking.layer or looking.of)})

    def stages(self, layer: str, layers: Sequence[str]) -> list[str]:
        """The modules of which there are maps from this layer to the next of those watched.

        A convolution, its normalization's ReLU …; all there are where none was watched.
        """
        kept = self._run.snapshot_layers(FeatureMaps)
        if layer not in kept:
            return [] if layers else kept
        rest = kept[kept.index(layer) + 1 :]
        ends = [i for i, name in enumerate(rest) if name in layers]
        return [layer, *rest[: ends[0] if ends else None]]

    def show(self, looking: Looking) -> Looking:
        """Put every panel; what is looked at becomes what there is."""
        run, of, put = self._run, looking.of, self._panels.put
        layer = looking.layer or of  # where no layer was watched there may be pictures all the same
        self._probes = self._probes or run.snapshot(Probes)
        maps = run.snapshot(FeatureMaps, of, looking.epoch)
        kernels = run.snapshot(Kernels, layer, looking.epoch)
        fields = run.snapshot(FieldIntervals, of)
        effective = run.snapshot(EffectiveFieldMap, of, looking.epoch)
        if maps is not None and maps.maps.size:
            choice = looking.choice
            if choice.unit is not None:  # the map follows the sliding window
                choice = replace(choice, cell=shown.cell_of_unit(maps, choice.unit))
            choice = shown.settle(choice, maps, self._probes)
            looking = replace(looking, choice=choice)
        epochs = run.snapshot_epochs(FeatureMaps, of)
        put("features", shown.features(maps, self._probes, epochs, looking.choice, looking.shared))
        put("unit", shown.unit(maps, self._probes, fields, effective, looking.choice))
        before = maps if of == layer else run.snapshot(FeatureMaps, layer, looking.epoch)
        put("window", shown.window(kernels, self._probes, before, looking.choice))
        epochs = run.snapshot_epochs(Kernels, layer)
        put("kernels", shown.kernels(kernels, epochs, looking.choice.channel))
        return looking


def neighbour(epochs: Sequence[int], epoch: int | None, step: int) -> int | None:
    """The epoch that was kept next to one; None beyond the newest, which is then followed."""
    if not epochs:
        return None
    at = (
        len(epochs) - 1
        if epoch is None
        else max((i for i, kept in enumerate(epochs) if kept <= epoch), default=0)
    )
    at += step
    return None if at >= len(epochs) - 1 else epochs[max(at, 0)]
