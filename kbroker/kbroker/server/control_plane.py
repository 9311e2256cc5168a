"""What the two halves of the broker know of each other.

The data side (connections, apis, replicas) asks a `ControlPlane`; the control side (everything
that talks to zkserver) drives a `DataPlane`. Neither imports the other.
"""

from __future__ import annotations

from typing import Protocol

from duolog_protocol.broker_messages import (
    CreateTopicResponse,
    DeleteTopicResponse,
    NewTopicRequest,
)

from ..core.metadata_image import MetadataImage


class ControlPlane(Protocol):
    """The cluster, as the apis need it."""

    @property
    def image(self) -> MetadataImage:
        """The cluster as it is known now."""
        ...

    async def create_topics(
        self, requests: tuple[NewTopicRequest, ...], timeout_ms: int, validate_only: bool
    ) -> tuple[CreateTopicResponse, ...]:
        """Create topics, each on its own; returns once this broker leads its partitions.

        Raises BrokerError for the whole request (NOT_CONTROLLER, BROKER_NOT_AVAILABLE).
        Cancelling leaves topics whole or absent, never half made for long: what was begun is
        finished by the controller.
        """
        ...

    async def delete_topics(
        self, names: tuple[str, ...], timeout_ms: int
    ) -> tuple[DeleteTopicResponse, ...]:
        """Delete topics, each on its own. Raises and cancels as `create_topics`."""
        ...

    async def allocate_producer_ids(self) -> range:
        """A block of producer ids that no broker will hand out again. Raises BrokerError."""
        ...


class DataPlane(Protocol):
    """The replicas of this broker, as the control side needs them."""

    async def apply_image(self, image: MetadataImage) -> bool:
        """Open, lead, follow or drop partitions until they are as the image says. Idempotent.

        False where the disk was too full to open some of them: call again later.
        """
        ...

    def fence(self, reason: str) -> None:
        """The registration is lost: refuse produce (retriable) until `unfence`."""
        ...

    def unfence(self, broker_epoch: int) -> None:
        """The broker is registered, under this epoch."""
        ...
