"""Asks several nodes at once, so that those that don't answer delay no other."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from pcapsvc.client.interruption import uninterrupted
from pcapsvc.client.status import ClientError

_MOST = 32

Place = TypeVar("Place")
Answer = TypeVar("Answer")


def start_thread(function: Callable[..., None], *arguments: object) -> threading.Thread:
    """
    Call a function in a thread that ends with the program.

    @raise ClientError: if the system has no room for another one.
    """
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    try:
        with uninterrupted():
            thread.start()
    except RuntimeError:
        raise ClientError("the system permits no more threads") from None
    return thread


def at_once(ask: Callable[[Place], Answer], places: Iterable[Place]) -> Sequence[Answer]:
    """
    Call a function for each place, up to 32 at once, each in a thread, even if there is only one: libraries
    are left in disorder by a signal's exception, which is raised in the main thread.

    The threads are daemons: Ctrl-C doesn't wait for them, as it would with L{concurrent.futures}.

    @return: what it returned, in the order of the places.

    @raise BaseException: what the function raises.
    @raise ClientError: if no thread can be started.
    """
    numbered = list(enumerate(places))
    waiting: queue.SimpleQueue[tuple[int, Place]] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, Answer] | BaseException] = queue.SimpleQueue()
    for item in numbered:
        waiting.put(item)

    def run() -> None:
        while True:
            try:
                number, place = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((number, ask(place)))
            except BaseException as problem:  # noqa: BLE001 - it is raised in the waiting thread
                done.put(problem)

    for number in range(min(_MOST, len(numbered))):
        try:
            start_thread(run)
        except ClientError:
            if not number:
                raise
            break
    answers: dict[int, Answer] = {}
    while len(answers) < len(numbered):
        found = done.get()
        if isinstance(found, BaseException):
            raise found
        answers[found[0]] = found[1]
    return [answers[number] for number, _ in numbered]
