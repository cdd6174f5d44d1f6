from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest

from fajma.tasks import end, in_own_thread


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


async def test_work_in_its_own_thread_has_a_loop_of_its_own_and_ends_with_it() -> None:
    seen: list[object] = []

    async def work() -> None:
        seen.append((threading.current_thread().name, asyncio.get_running_loop()))

    await in_own_thread(work(), name="worker")
    [(name, loop)] = seen
    assert name == "worker"
    assert loop is not asyncio.get_running_loop()
    assert loop.is_closed()


async def test_what_work_in_its_own_thread_raises_comes_out() -> None:
    async def work() -> None:
        raise ValueError("of its own")

    with pytest.raises(ValueError, match="of its own"):
        await in_own_thread(work(), name="worker")


async def test_cancelling_reaches_work_in_its_own_thread_and_waits_until_it_has_ended() -> None:
    ours = asyncio.get_running_loop()
    began = asyncio.Event()
    ended = threading.Event()

    async def work() -> None:
        try:
            ours.call_soon_threadsafe(began.set)
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.set()

    task = asyncio.create_task(in_own_thread(work(), name="worker"))
    async with asyncio.timeout(10):
        await began.wait()
        await end([task])
    assert task.cancelled()
    assert ended.is_set()


async def test_work_in_its_own_thread_that_is_cancelled_at_once_ends() -> None:
    async def work() -> None:
        await asyncio.Event().wait()

    task = asyncio.create_task(in_own_thread(work(), name="worker"))
    await asyncio.sleep(0)  # its thread is started, and has perhaps not begun
    async with asyncio.timeout(10):
        await end([task])
    assert task.cancelled()
