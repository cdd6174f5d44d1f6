from __future__ import annotations

import asyncio
import contextlib

from fajma.tasks import end


async def test_a_task_that_loses_a_cancellation_is_ended_all_the_same() -> None:
    lost = 0

    async def forgetful() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if lost:
                    raise
                lost += 1

    task = asyncio.create_task(forgetful())
    await asyncio.sleep(0)  # let it begin
    async with asyncio.timeout(10):
        await end([task])
    assert task.cancelled()
    assert lost == 1


async def test_what_has_ended_is_left_alone_and_what_fails_keeps_its_error() -> None:
    async def fail() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        raise ValueError("on the way out")

    done = asyncio.create_task(asyncio.sleep(0))
    await done
    failing = asyncio.create_task(fail())
    await asyncio.sleep(0)
    await end([done, failing])
    assert not done.cancelled()
    assert isinstance(failing.exception(), ValueError)
