"""The controller's writes: topics, settings, states, deletions, each fenced.

Owns how a decision of `core.controller` becomes transactions. Each of them, deletions too, checks
the version of `/controller_epoch` first and is sent in the session that was elected or not at all,
so that a deposed controller changes nothing (KAFKA-6082). What spans several transactions is
written so that a controller that finds it half done can go on: a topic's znode before its states,
the request to delete a topic last.

Source: Kafka `KafkaZkClient`, `TopicDeletionManager`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from duolog.zk import Transaction, ZkClient
from duolog_protocol.errors import (
    BadVersionError,
    BrokerError,
    Error,
    NodeExistsError,
    NoNodeError,
    NotEmptyError,
    RolledBackError,
    TransportError,
)
from duolog_runtime.logs import Logger

from ..core import controller as decide
from ..core import znodes
from ..core.controller import StateChange, TopicPlan
from ..core.metadata_image import MetadataImage
from .znode_reader import ZnodeReader, in_parallel

NO_VERSION: Final = -1
_DELETION_TRIES: Final = 5


class ControllerLost(Exception):
    """Another broker is the controller now: a write found a newer `/controller_epoch`."""


class ZnodeWriter:
    """Writes of one broker while it is the controller."""

    def __init__(self, zk: ZkClient, reader: ZnodeReader, log: Logger) -> None:
        self._zk = zk
        self._reader = reader
        self._log = log
        self.controller_epoch = -1
        self.epoch_version = NO_VERSION
        """Version of `/controller_epoch` that every write demands."""
        self.session_id: int | None = None
        """The session that was elected: its writes are never sent in a later one."""

    async def write_elections(self, image: MetadataImage) -> MetadataImage:
        """Elect a leader for every partition that needs one. Raises ControllerLost."""
        changes = decide.elections(image, self.controller_epoch)
        for batch in decide.batches(changes):
            image = await self._write_states(image, batch)
        return image

    async def _write_states(
        self, image: MetadataImage, changes: Sequence[StateChange]
    ) -> MetadataImage:
        transaction = self._fenced()
        for change in changes:
            if change.expected_epoch == decide.NO_STATE:
                partition = znodes.partition_path(change.topic, change.partition)
                transaction.create(partition, b"")
                transaction.create(change.path, change.data)
            else:
                transaction.set_data(change.path, change.data, change.expected_epoch)
        try:
            results = await self._commit_fenced(transaction)
        except NoNodeError:
            # A topic whose znodes another tool has made lacks the parent of its states.
            for topic in {change.topic for change in changes}:
                await self._create_fenced(znodes.partitions_path(topic))
            results = await self._commit_fenced(transaction)
        made = [change for change in changes if change.expected_epoch == decide.NO_STATE]
        stats = dict(
            zip(made, await self._reader.stats([change.path for change in made]), strict=True)
        )
        written: list[tuple[StateChange, int, int]] = []
        at = 1
        for change in changes:
            stat = stats.get(change, results[at])
            if stat is None:
                raise TransportError(f"{change.path} vanished while it was written")
            written.append((change, stat.version, stat.mzxid))
            at += 2 if change in stats else 1
        self._log.info("leaders_elected", partitions=len(changes), new=len(made))
        return decide.apply_states(image, written)

    async def write_topic(self, plan: TopicPlan) -> None:
        """A topic and its settings in one transaction; its states are `write_elections`'.

        Raises NodeExistsError, ControllerLost.
        """
        await self._drop_stale_config(plan.name)
        transaction = self._fenced()
        transaction.create(znodes.topic_config_path(plan.name), plan.config_data)
        transaction.create(znodes.topic_path(plan.name), plan.topic_data)
        transaction.create(znodes.partitions_path(plan.name), b"")
        await self._commit_fenced(transaction)

    async def _drop_stale_config(self, name: str) -> None:
        """Settings of a topic that is not there (left by an interrupted deletion)."""
        if await self._zk.exists(znodes.topic_path(name)) is not None:
            raise NodeExistsError(f"{znodes.topic_path(name)} exists")
        config = znodes.topic_config_path(name)
        if await self._zk.exists(config) is not None:
            await self._delete_fenced([config])

    async def request_deletion(self, name: str) -> None:
        """Note that a topic is to be deleted: from now on every controller finishes it.

        Raises ControllerLost.
        """
        await self._create_fenced(znodes.delete_topic_path(name))

    async def finish_deletion(self, image: MetadataImage, name: str) -> MetadataImage:
        """Remove a topic's znodes, the request last, so that a crash begins here again.

        Raises ControllerLost; a deletion is many writes, each of them idempotent and fenced: the
        topic may have been deleted, and made again, by the next controller.
        """
        await self._delete_states(name)
        for _ in range(_DELETION_TRIES):
            doomed = await self._subtree(znodes.topic_path(name))
            doomed += await self._subtree(znodes.topic_config_path(name))
            doomed += await self._subtree(znodes.delete_topic_path(name))
            try:
                await self._delete_fenced(doomed)
                break
            except (NoNodeError, NotEmptyError):
                continue  # another tool is at work there: look again
        else:
            raise BrokerError(f"topic {name!r}: its znodes change while they are deleted")
        self._log.info("topic_deleted", topic=name)
        return decide.apply_deletion(image, name)

    async def _delete_states(self, name: str) -> None:
        """The bulk of a topic, in few transactions, without a look at each partition."""
        await self._commit_fenced(self._fenced())
        try:
            numbers: list[str] = await self._zk.get_children(znodes.partitions_path(name))
        except NoNodeError:
            return
        try:
            for batch in decide.deletion_batches(name, sorted(numbers)):
                await self._commit_deletion(batch)
        except (NoNodeError, NotEmptyError):
            return  # half deleted before, or with children that are not ours

    async def _subtree(self, path: str) -> list[str]:
        """A znode and everything below it, children first; nothing where it does not exist."""
        if await self._zk.exists(path) is None:
            return []
        levels = [[path]]
        while levels[-1]:
            names = await in_parallel(levels[-1], self._children)
            levels.append(
                [
                    f"{parent}/{name}"
                    for parent, found in zip(levels[-1], names, strict=True)
                    for name in found
                ]
            )
        return [each for level in reversed(levels) for each in level]

    async def _children(self, path: str) -> list[str]:
        try:
            names: list[str] = await self._zk.get_children(path)
        except NoNodeError:
            return []
        return names

    async def _delete_fenced(self, paths: Sequence[str]) -> None:
        longest = max(map(len, paths), default=0)
        if longest + decide.MULTI_OP_BYTES > decide.MULTI_BYTES:
            raise BrokerError(f"a path of {longest} characters cannot be deleted in a transaction")
        for batch in decide.path_batches(paths):
            await self._commit_deletion(batch)

    async def _commit_deletion(self, paths: Sequence[str]) -> None:
        transaction = self._fenced()
        for path in paths:
            transaction.delete(path)
        await self._commit_fenced(transaction)

    async def _create_fenced(self, path: str) -> None:
        """Create a znode without data, below a parent that is there, unless it exists."""
        try:
            await self._commit_fenced(self._fenced().create(path, b""))
        except NodeExistsError:
            return

    async def create_if_missing(self, path: str, data: bytes) -> None:
        """Create a znode, and its parents, unless it is there."""
        try:
            await self._zk.create(path, data, makepath=True)
        except NodeExistsError:
            return

    def _fenced(self) -> Transaction:
        """A transaction that does nothing unless we still are the controller."""
        transaction = self._zk.transaction()
        transaction.check(znodes.CONTROLLER_EPOCH, self.epoch_version)
        return transaction

    async def _commit_fenced(self, transaction: Transaction) -> list[Any]:
        results = await transaction.commit(session_id=self.session_id)
        if isinstance(results[0], BadVersionError):
            raise ControllerLost
        return first_error_raised(results)


def first_error_raised(results: Iterable[Any]) -> list[Any]:
    """The results of a multi, or the error that failed it (not those it took along)."""
    found = list(results)
    errors = [each for each in found if isinstance(each, Error)]
    for error in errors:
        if not isinstance(error, RolledBackError) and getattr(error, "code", 0) != 0:
            raise error
    if errors:
        raise errors[0]
    return found
