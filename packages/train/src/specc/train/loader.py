"""Batches are made ahead of their steps, by a thread, while the step before them computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from queue import Empty, Queue
from threading import Event, Thread
from typing import Final, Generic, Self, TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")
AHEAD: Final = 2
"""Batches that are ready and not yet asked for, at most: besides, one is being made and one is in use."""
PATIENCE: Final = 10.0
"""Seconds that the end waits for what is being made."""


class Ahead(Generic[Item, Made], Iterator[tuple[Item, Made]]):
    """An iterator over `(item, make(item))` that is ahead of whoever asks, to be left by `with`.

    What is made depends on its item alone, and is therefore what it would be without a thread. What `make` or `items`
    raises is raised where its item is asked for.
    """

    def __init__(self, make: Callable[[Item], Made], items: Iterable[Item]) -> None:
        """Begin with the first items."""
        self._make, self._items = make, items
        self._ready: Queue[tuple[Item, Made] | BaseException] = Queue(AHEAD)
        self._left = Event()
        self._thread = Thread(target=self._work, name="loader", daemon=True)
        self._thread.start()

    def __next__(self) -> tuple[Item, Made]:
        found = self._ready.get()
        if isinstance(found, BaseException):
            self._ready.put(found)  # for whoever asks again
            raise found
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        try:
            while True:
                self._ready.get_nowait()  # what waits for room goes on, and sees that it is over
        except Empty:
            self._thread.join(PATIENCE)

    def _work(self) -> None:
        try:
            for item in self._items:
                self._ready.put((item, self._make(item)))
                if self._left.is_set():
                    return
            self._ready.put(StopIteration())
        except BaseException as error:  # noqa: BLE001 - raised again by whoever asks for this item
            self._ready.put(error)
