"""The pictures inside a report: which are shown, how large they are, what is said of the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from snapshots_data import Element, digits, parsed
from test_views_report import EVIL, headings, items, report, without_scripts
from views_data import META, Run, create_run, open_run

from convlens.core.snapshots import FeatureMaps, FieldIntervals, Kernels, Probes, Snapshot
from convlens.views import write_report
from convlens.views.album import FIELD_BYTES, MAP_BYTES, inside, read_album, spread
from convlens.views.watched import merged


@pytest.fixture(scope="module")
def page(trained_report) -> str:
    return without_scripts(trained_report)


def layer(page: str, key: str) -> Element:
    body = page[page.index("<main>") : page.index("</main>") + len("</main>")]
    return parsed(body).one("section", id=key)


def titles(section: Element) -> list[str]:
    parts = section.all(class_="inside")
    return [child.text for one in parts for child in one.children[:1] if isinstance(child, Element)]


def kept() -> Iterator[Snapshot]:
    """Every snapshot of a real training."""
    found = digits()
    yield found.probes
    for by_layer in (found.maps, found.kernels):
        for snapshots in by_layer.values():
            yield from snapshots
    yield from found.fields.values()
    yield from found.effective.values()
    yield from found.confusion
    yield from found.mistakes


def write_kept(base: Path, *snapshots: Snapshot) -> Run:
    writer = create_run("kept", base)
    writer.write_meta(META)
    for snapshot in snapshots:
        writer.write_snapshot(snapshot)
    writer.close()
    return open_run(writer.path)


def test_a_convolution_has_kernels_maps_and_a_field(page):
    first, second = layer(page, "layer-0"), layer(page, "layer-2")

    assert titles(first) == [
        "Kernels",
        "A unit and its receptive field: where channel 0 is largest on the first probe image",
        "Feature maps of the probe images",
        "One probe image through the epochs",
        "The sliding window: how that unit's value comes about",
    ]
    assert titles(second) == titles(first)[:-1]
    sheet, through = first.all("table", class_="sheet")
    assert len(sheet.all("tr")) == 1 + 8
    assert [row.one("th", scope="row").text for row in through.all("tr")[1:]] == [
        "before training",
        "epoch 1",
        "epoch 2",
    ]
    assert len(first.one(class_="kernels").all("img")) == 8
    assert "they agree" in first.one(class_="window").text
    assert not first.all(data_do="unit")


def test_what_a_layer_only_passes_on_is_folded(page):
    norm = layer(page, "layer-1")

    assert titles(norm) == ["Feature maps of the probe images"]
    assert len(norm.one("details").all("img")) == 16


def test_layers_without_numbers_stand_in_the_models_order(page):
    tree = parsed(page[page.index("<main>") : page.index("</main>") + len("</main>")])
    names = [section.one("h3").text for section in tree.all("section", class_="layer")]

    assert names[:4] == ["0.0 Conv2d", "0.1 ReLU", "0.2 BatchNorm2d", "1.0 Conv2d"]
    assert "were not watched" in layer(page, "pictures-1").text
    assert len(names) == len(set(names)) == 14


def test_mistakes_are_in_place_of_the_worst_predictions(page, trained):
    section = layer(page, "mistakes")

    total = sum(int(c.text.replace(",", "")) for c in section.all("td") if c.text.isdigit())
    assert total == 300
    assert "Largest losses after epoch 2" in section.text
    assert "The worst predictions" not in page
    assert trained.pictures("worst")


def test_gradients_and_updates_are_among_the_quantities(page, trained_report):
    html = trained_report.read_text(encoding="utf-8")
    found = items(html)

    options = layer(page, "layers").one("select", id="quantity").all("option")
    keys = [one.attributes["value"].removeprefix("choice-") for one in options]
    assert keys == ["near_zero", "mean", "std", "dead", "gradient", "update"]
    assert {f"matrix-{key}" for key in keys} < set(found)
    assert "Gradient size" in found["layer-0"]
    assert "Update ratio" in found["layer-0"]
    assert "Dead, silent channels of 8" in found["layer-0"]
    assert "Not recorded in this run" not in page
    hidden = [one for one in layer(page, "layers").all(class_="choice") if one.has(hidden="")]
    assert len(hidden) == len(keys) - 1


def test_the_report_of_a_real_run_is_small(trained_report):
    assert trained_report.stat().st_size < 4e6


def test_pictures_without_a_watched_layer(tmp_path):
    page = report(write_kept(tmp_path, *kept()))

    assert "No layer was watched in this run" in page
    assert titles(layer(page, "pictures-0"))[0] == "Kernels"
    assert "taken for" in layer(page, "mistakes").text


def test_maps_without_probe_images_or_fields(tmp_path):
    page = report(write_kept(tmp_path, *(s for s in kept() if isinstance(s, FeatureMaps))))

    assert titles(layer(page, "pictures-0")) == [
        "Feature maps of the probe images",
        "One probe image through the epochs",
    ]


def test_a_run_without_pictures_has_none(tmp_path):
    album = read_album(write_kept(tmp_path))

    assert (album.layers, album.order, album.note) == ({}, (), "")
    assert inside(album, "0.0") == ""


def test_names_that_are_markup_are_text(tmp_path):
    attack = f'{EVIL}"><img src=x onerror="alert(2)">'

    def evil(snapshot: Snapshot) -> Snapshot:
        changes: dict[str, object] = {}
        for one in fields(snapshot):
            value = getattr(snapshot, one.name)
            if one.name in ("classes", "captions"):
                changes[one.name] = tuple(f"{attack}{i}" for i in range(len(value)))
            if one.name == "layer" and value:
                changes["layer"] = f"{attack}{value}"
        assert is_dataclass(snapshot)
        return replace(snapshot, **changes)

    html = report(write_kept(tmp_path, *map(evil, kept())))

    assert "<script>alert" not in html
    assert "<img src=x" not in html
    assert html.count("&lt;script&gt;alert(1)") > 50
    assert "What it gets wrong" in headings(html)


def large(n_layers: int = 50, n_epochs: int = 20, side: int = 160) -> Iterator[Snapshot]:
    """As much as a run may keep of a deep network on photographs, and hard to compress."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, side, side, 3)).astype(np.uint8)
    inputs = np.zeros((8, 3, 8, 8), np.float32)
    yield Probes(-1, "", images, inputs, tuple(f"class {i}" for i in range(8)))
    low, high, n = np.zeros(16, np.float32), np.ones(16, np.float32), np.arange(24)
    for i in range(n_layers):
        name = f"stage.{i}"
        line = np.minimum(6 * n + 5, side - 1)
        yield FieldIntervals(-1, name, (24, 24), 6 * n, line, 6 * n, line, (6 + i, 6 + i))
        weight = rng.normal(0, 1, (8, 8, 3, 3)).astype(np.float32)
        yield Kernels(
            19, name, weight, low[:8], (64, 64, 3, 3), (1, 1), (1, 1), (1, 1), 1, False, True
        )
        for epoch in range(n_epochs):
            maps = rng.integers(0, 256, (8, 16, 24, 24)).astype(np.uint8)
            yield FeatureMaps(epoch, name, maps, low, high, np.arange(16), 64, (24, 24))


def test_a_deep_network_has_as_many_pictures_as_fit(tmp_path):
    run = write_kept(tmp_path, *large())
    album = read_album(run)
    names = list(album.layers)
    shown = sum(len(inside(album, name)) for name in names)

    assert (names[0], names[-1], len(album.order)) == ("stage.0", "stage.49", 50)
    assert 0.5 * (MAP_BYTES + FIELD_BYTES) < shown < MAP_BYTES + FIELD_BYTES
    assert album.probes is not None
    assert len(album.probes.images) < 8
    some = album.layers["stage.0"]
    assert [some.maps[0].epoch, some.maps[-1].epoch] == [0, 19]
    assert {len(one.maps) for one in album.layers.values()} == {len(some.maps)}
    for words in (
        f"pictures of {len(names)} of 50 layers",
        f"{len(album.probes.images)} of 8 probe images",
        f"{len(some.maps)} of 20 kept epochs",
        "of 50 layers; “convlens view” shows all that was kept.",
    ):
        assert words in album.note
    html = write_report(run).read_text(encoding="utf-8")
    assert album.note in html
    assert len(html) < 6e6


def test_a_small_network_has_all_of_them(trained):
    album = read_album(trained)

    assert album.note == ""
    assert list(album.layers) == list(album.order)
    assert len(album.order) == 14


@pytest.mark.parametrize(
    ("n", "expected"), [(9, [0, 1, 2, 3, 4]), (3, [0, 2, 4]), (2, [0, 4]), (1, [4])]
)
def test_items_are_spread(n, expected):
    assert spread(range(5), n) == expected


def test_two_orders_are_merged():
    assert merged(["a", "c", "e"], ["a", "b", "c", "d"]) == ["a", "b", "c", "d", "e"]
    assert merged([], ["a", "b"]) == ["a", "b"]
    assert merged(["x"], ["a"]) == ["a", "x"]
