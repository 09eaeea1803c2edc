"""A loader's first batches, with the loader left as it was."""

from __future__ import annotations

import copy
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from convlens.checking.batches import is_batch
from convlens.core.wording import type_name
from convlens.errors import ArgumentError
from convlens.execution import same_random
from convlens.execution.reachable import ATOMS, STATES, ContainerState

MOST = 8
"""Batches that are taken from a loader."""

DEEP, MANY, LONG = 6, 10_000, 1_000
"""Objects in a row, objects in all, and entries of a container that are followed from a loader."""

ONCE = "can be read only once"


def batches_of(data: object, seconds: float) -> list[Any]:
    """The first batches of a loader, or the one batch that was given.

    A loader and what it holds (samplers, data set, random generators) is as before afterwards. A
    `DataLoader` is read without its workers.

    Raises:
        ArgumentError: if it is an iterator, which can be read only once, or empty.
    """
    if is_batch(data):
        return [data]
    if isinstance(data, Iterator):
        raise ArgumentError(
            f"data is {type_name(data)}, an iterator, which {ONCE}; give a batch, next(iterator), "
            "or the loader itself."
        )
    if not isinstance(data, Iterable):
        raise ArgumentError(
            f"data must be a batch (x, y) or a loader of batches, got {data!r:.60}."
        )
    refuse_streams(data)
    with loader_restored(data), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the training says them again
        found = _read(data, seconds)
    if not found:
        raise ArgumentError("data is a loader without a batch; is its dataset empty?")
    return found


def refuse_streams(data: Iterable[Any]) -> None:
    """Raises ArgumentError if reading it uses up an iterator that it holds."""
    source: object = getattr(data, "dataset", data)
    if isinstance(data, DataLoader) and not isinstance(source, IterableDataset):
        return  # items are read by their index
    held = {name: value for name, value in _attributes(source) if isinstance(value, Iterator)}
    held = {name: value for name, value in held.items() if name != "_iterator"}
    if held:
        name = next(iter(held))
        raise ArgumentError(
            f"data reads from {type_name(source)}.{name}, an iterator, which {ONCE}; give a batch, "
            "such as next(iter(loader)), and know that this one is used up then."
        )


def _read(data: Iterable[Any], seconds: float) -> list[Any]:
    if not isinstance(data, DataLoader):
        return _first(data, seconds)
    alone = cast("DataLoader[Any]", copy.copy(data))
    here = {"num_workers": 0, "persistent_workers": False, "prefetch_factor": None, "timeout": 0}
    vars(alone).update(here, _iterator=None)
    try:
        return _first(alone, seconds)
    except Exception:
        if not data.num_workers:
            raise
    # It may need its workers, as a data set does that asks which of them it is in.
    again = cast("DataLoader[Any]", copy.copy(data))
    vars(again).update(persistent_workers=False, _iterator=None)
    return _first(again, seconds)


def _first(data: Iterable[Any], seconds: float) -> list[Any]:
    until, found = time.perf_counter() + seconds, list[Any]()
    iterator = iter(data)
    for batch in islice(iterator, MOST):
        found.append(batch)
        if time.perf_counter() > until:
            break
    del iterator  # ends workers
    return found


def spread_batch(data: object, n: int, seconds: float) -> Any:  # noqa: ANN401
    """A batch of ``n`` items from all over a data set; None if no `DataLoader` reads it in order.

    Begins at the end, in case that there is no time for all. The loader is as before afterwards.
    """
    batches = data.batch_sampler if isinstance(data, DataLoader) else None
    if type(batches) is not BatchSampler or not isinstance(batches.sampler, SequentialSampler):
        return None
    loader = cast("DataLoader[Any]", data)
    until, items = time.perf_counter() + seconds, list[Any]()
    with loader_restored(loader), warnings.catch_warnings(action="ignore"), suppress(Exception):
        size = len(batches.sampler)
        for place in reversed(range(0, size, max(size // n, 1))):
            items.append(loader.dataset[place])
            if time.perf_counter() > until:
                break
        return loader.collate_fn(items)
    return None


@contextmanager
def loader_restored(data: object) -> Generator[None]:
    """Restore a loader, and the random generators and containers that it holds."""
    containers = list[ContainerState]()
    states = list[Callable[[], object]]()
    for thing in _held(data):
        kinds = [kind for kind in STATES if isinstance(thing, kind)]
        if kinds:
            read, put_back = STATES[kinds[0]]
            state = read(thing)
            states.append(lambda put=put_back, thing=thing, state=state: put(thing, state))
        else:
            containers.append(ContainerState(thing))
    with ExitStack() as stack:
        stack.enter_context(same_random())
        for each in containers:
            stack.callback(each.restore)
        for state in states:
            stack.callback(state)
        yield


def _held(data: object) -> Iterator[Any]:
    """Dictionaries, lists, sets and random generators near a loader; no arrays, no iterators."""
    held: dict[int, Any] = {}  # held so that no id() is reused
    waiting = deque[tuple[Any, int]]([(data, 0)])
    while waiting and len(held) < MANY:
        thing, hops = waiting.popleft()
        skipped = isinstance(thing, (*ATOMS, Tensor, np.ndarray, bytearray))
        if skipped or id(thing) in held or hops > DEEP:
            continue
        held[id(thing)] = thing
        if isinstance(thing, dict | list | set | deque):
            yield thing
            values: Any = thing.values() if isinstance(thing, dict) else thing
            waiting.extend((value, hops + 1) for value in islice(values, LONG))
        elif isinstance(thing, tuple | frozenset):
            waiting.extend((value, hops + 1) for value in islice(cast("Any", thing), LONG))
        elif any(isinstance(thing, kind) for kind in STATES):
            yield thing
        elif not isinstance(thing, Iterator) and hasattr(thing, "__dict__"):
            waiting.append((vars(thing), hops))


def _attributes(thing: object) -> list[tuple[str, object]]:
    found: Mapping[str, object] = getattr(thing, "__dict__", {})
    return list(found.items())


def device_of(model: torch.nn.Module) -> torch.device:
    """Where a model's first parameter or buffer lies."""
    tensors = [*islice(model.parameters(), 1), *islice(model.buffers(), 1)]
    return tensors[0].device if tensors else torch.device("cpu")
