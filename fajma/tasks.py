"""Ending tasks for certain; work in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterable
from typing import Any, Final

CANCEL_AGAIN_S: Final = 1.0


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until all have ended; what they raise is theirs.

    A cancellation can be lost on its way: ``asyncio.wait_for`` of Python 3.11 drops one that comes
    as its future is done, and libraries turn one into a timeout. So it is repeated until it takes.
    """
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=CANCEL_AGAIN_S)


async def in_own_thread(work: Coroutine[Any, Any, None], *, name: str) -> None:
    """Do work that blocks its event loop now and then, in a thread with a loop of its own.

    It must use nothing that belongs to our loop. When we are cancelled the work is, and we wait for
    its end; what it raises we raise.

    Args:
        work: a coroutine that was not started.
        name: of the thread.
    """
    ours, its = asyncio.get_running_loop(), asyncio.new_event_loop()
    ended = asyncio.Event()
    task = its.create_task(work)

    async def until_done() -> None:
        await asyncio.wait([task])

    def thread() -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: its) as runner:
                runner.run(until_done())
        finally:
            ours.call_soon_threadsafe(ended.set)

    threading.Thread(target=thread, name=name, daemon=True).start()
    cancelled = False
    while not ended.is_set():
        try:
            await ended.wait()
        except asyncio.CancelledError:
            cancelled = True
            with contextlib.suppress(RuntimeError):  # its loop is closed: it has ended meanwhile
                its.call_soon_threadsafe(task.cancel)
    if cancelled:
        raise asyncio.CancelledError
    task.result()
