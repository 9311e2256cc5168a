"""asyncio in virtual time: processes that end or stand still, and connections between them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from duolog_cluster.sim import NothingHappensError, NotSimulatedError, SimMachine, SimWorld

PORT = 7_000


def run(story: Coroutine[Any, Any, Any], world: SimWorld) -> Any:
    with world:
        return world.run(story)


async def serve(world: SimWorld, machine: SimMachine, heard: list[bytes]) -> None:
    """Answer every line with itself, until the process ends."""

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            heard.append(line)
            writer.write(line)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(take, machine.ip, PORT)
    await server.wait_closed()
    await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def connected(
    machine: SimMachine,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to a server that may still be starting."""
    for _ in range(1_000):
        try:
            reader, writer = await asyncio.open_connection(machine.name, PORT)
        except ConnectionRefusedError:
            await machine.world.sleep(0.001)
            continue
        try:
            yield reader, writer
        finally:
            writer.close()
        return
    raise AssertionError("nobody listens")


def test_time_passes_at_once_and_in_order() -> None:
    world = SimWorld()
    order: list[int] = []

    async def sleeper(seconds: int) -> None:
        await world.sleep(seconds)
        order.append(seconds)

    async def story() -> None:
        await asyncio.gather(*map(sleeper, (500, 3, 86_400, 20)))

    async def main() -> None:
        await story()
        assert order == [3, 20, 500, 86_400]
        assert 86_400_000 <= world.elapsed_ms < 86_400_010

    with world:
        world.run(main(), limit_s=100_000)


def test_who_waits_for_ever_is_told() -> None:
    async def story() -> None:
        await asyncio.Event().wait()

    world = SimWorld()
    with world, pytest.raises(NothingHappensError):
        world.loop.run_until_complete(story())
    with SimWorld() as other, pytest.raises(TimeoutError):
        other.run(story(), limit_s=5)


def test_what_nobody_took_is_raised_in_the_end() -> None:
    world = SimWorld()

    async def story() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await world.sleep(1)

    with pytest.raises(ZeroDivisionError):
        run(story(), world)


def test_a_killed_process_does_nothing_more_and_its_peers_are_told() -> None:
    world = SimWorld()
    done: list[str] = []

    async def story() -> None:
        machine, heard = world.machine("server"), []

        async def never_ending() -> None:
            try:
                await world.sleep(1)
                done.append("slept")
            finally:
                done.append("cleaned up")  # Python's affair: nothing outside can see it
                await asyncio.sleep(0)
                done.append("went on")

        process = machine.boot()
        process.start(serve(world, machine, heard))
        process.start(never_ending())
        async with connected(machine) as (reader, writer):
            writer.write(b"one\n")
            assert await reader.readline() == b"one\n"
            machine.kill()
            assert await reader.read() == b""  # as the kernel would have it
            await world.sleep(10)
            assert done == ["cleaned up"]
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(machine.name, PORT)
            machine.boot().start(serve(world, machine, heard))
        async with connected(machine) as (reader, writer):
            writer.write(b"two\n")
            assert await reader.readline() == b"two\n"
            assert heard == [b"one\n", b"two\n"]

    run(story(), world)


def test_a_machine_without_power_tells_nobody() -> None:
    world = SimWorld()

    async def story() -> None:
        machine = world.machine("server")
        machine.boot().start(serve(world, machine, []))
        async with connected(machine) as (reader, _):
            world.network.faults.silent_rate = 1.0
            machine.lose_power()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(60):
                    await reader.read()

    run(story(), world)


def test_a_process_that_stands_still_goes_on_where_it_was() -> None:
    world = SimWorld()

    async def story() -> None:
        machine, heard = world.machine("server"), []
        machine.boot().start(serve(world, machine, heard))
        async with connected(machine) as (reader, writer):
            machine.pause()
            for number in range(20):
                writer.write(b"%d\n" % number)
            await world.sleep(5)
            assert heard == []
            machine.resume()
            for number in range(20):
                assert await reader.readline() == b"%d\n" % number

    run(story(), world)


def test_what_is_cut_off_is_lost_and_a_dial_times_out() -> None:
    world = SimWorld()

    async def story() -> None:
        machine = world.machine("server")
        machine.boot().start(serve(world, machine, []))
        async with connected(machine) as (reader, writer):
            world.cut(world.home, machine)
            writer.write(b"lost\n")
            with pytest.raises(ConnectionResetError):
                await reader.readline()
            with pytest.raises(OSError):
                await asyncio.open_connection(machine.name, PORT)
            world.heal()
        async with connected(machine) as (reader, writer):
            writer.write(b"here\n")
            assert await reader.readline() == b"here\n"

    run(story(), world)


def test_a_reader_that_reads_nothing_stops_the_writer() -> None:
    world = SimWorld()
    sent = 0

    async def story() -> None:
        nonlocal sent
        machine = world.machine("server")
        accepted: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted.append((reader, writer))

        async def listen() -> None:
            await asyncio.start_server(take, machine.ip, PORT)
            await asyncio.Event().wait()

        machine.boot().start(listen())
        async with connected(machine) as (_, writer):

            async def write() -> None:
                nonlocal sent
                for _ in range(1_000):
                    writer.write(bytes(10_000))
                    sent += 10_000
                    await writer.drain()

            writing = asyncio.create_task(write())
            await world.sleep(60)
            assert not writing.done() and 100_000 < sent < 1_000_000
            while not writing.done() or sent > 10_000_000:
                assert await accepted[0][0].read(65_536)
                await asyncio.sleep(0)
            accepted[0][1].close()

    run(story(), world)


def test_a_port_is_taken_once_and_hosts_have_names() -> None:
    world = SimWorld()

    async def story() -> None:
        loop = asyncio.get_running_loop()
        first = await loop.create_server(asyncio.Protocol, "", PORT)
        with pytest.raises(OSError, match="in use"):
            await loop.create_server(asyncio.Protocol, "", PORT)
        first.close()
        (await loop.create_server(asyncio.Protocol, "", PORT)).close()
        with pytest.raises(OSError, match="nowhere"):
            await asyncio.open_connection("nowhere", PORT)
        with pytest.raises(NotSimulatedError):
            await loop.run_in_executor(None, print)
        with pytest.raises(NotSimulatedError):
            await asyncio.open_connection("story", PORT, ssl=True)

    run(story(), world)


def test_an_answer_belongs_to_its_own_dial() -> None:
    """The answer of one that was given up comes late, and is not taken for that of the next."""
    world = SimWorld()

    async def story() -> None:
        machine = world.machine("server")
        machine.boot().start(serve(world, machine, []))
        async with connected(machine):
            pass
        world.cut(world.home, machine)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await asyncio.open_connection(machine.name, PORT)
        world.heal()
        began_ms = world.elapsed_ms
        async with connected(machine) as (reader, writer):
            writer.write(b"here\n")
            assert await reader.readline() == b"here\n"
        assert world.elapsed_ms - began_ms < 100

    run(story(), world)


def test_what_was_cancelled_while_a_process_stood_still_is_not_called() -> None:
    world = SimWorld()
    called: list[str] = []

    async def story() -> None:
        machine = world.machine("server")
        loop = asyncio.get_running_loop()

        async def set_timers() -> None:
            second = loop.call_later(2, called.append, "second")
            loop.call_later(1, second.cancel)
            loop.call_later(3, called.append, "third")

        machine.boot().start(set_timers())
        await world.sleep(0.5)
        machine.pause()
        await world.sleep(10)
        assert called == []
        machine.resume()
        await world.sleep(1)
        assert called == ["third"]

    run(story(), world)


def test_what_a_killed_process_cleans_up_does_not_touch_its_disk() -> None:
    world = SimWorld()

    async def story() -> None:
        machine = world.machine("server")

        async def tidy() -> None:
            machine.disk.open("/lock", create=True).close()
            try:
                await world.sleep(1_000)
            finally:
                machine.disk.unlink("/lock")

        machine.boot().start(tidy())
        await world.sleep(1)
        machine.kill()
        assert machine.disk.exists("/lock")

    run(story(), world)


def test_a_server_may_serve_for_ever_and_hears_of_the_end_of_what_is_sent() -> None:
    world = SimWorld()
    heard: list[bytes] = []

    async def story() -> None:
        machine = world.machine("server")

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard.append(await reader.read())
            writer.close()

        async def serve_for_ever() -> None:
            server = await asyncio.start_server(take, machine.ip, PORT)
            async with server:
                await server.serve_forever()

        machine.boot().start(serve_for_ever())
        async with connected(machine) as (_, writer):
            writer.write(b"all of it")
        await world.sleep(1)
        assert heard == [b"all of it"]

    run(story(), world)


def test_who_only_writes_learns_that_the_other_end_has_gone() -> None:
    """As with real sockets: the first bytes are refused, and the next ones fail."""
    world = SimWorld()
    ended: list[BaseException] = []

    async def pour(machine: SimMachine) -> None:
        async def take(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while True:
                    writer.write(b"x" * 4_096)
                    await writer.drain()
                    await world.sleep(0.001)
            except OSError as error:
                ended.append(error)

        server = await asyncio.start_server(take, machine.ip, PORT)
        await server.wait_closed()
        await asyncio.Event().wait()

    async def story() -> None:
        machine = world.machine("server")
        machine.boot().start(pour(machine))
        async with connected(machine) as (reader, _writer):
            await reader.readexactly(4_096)
        while not ended:
            await world.sleep(0.01)

    run(story(), world)
    assert isinstance(ended[0], ConnectionResetError)
