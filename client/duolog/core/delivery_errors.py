"""Errors that the client itself raises for records and positions; the wire's are in the protocol.

Each says with `definite` whether the record may have been stored after all.
"""

from __future__ import annotations

from duolog_protocol.error_codes import KafkaErrorCode
from duolog_protocol.errors import BrokerError, Error


class BufferFullError(Error):
    """The buffer or the topic's metadata did not become available within max_block_ms.

    The record was not taken: it was not sent and never will be.
    """

    retriable = True


class RecordExpiredError(Error):
    """delivery_timeout_ms passed and no attempt can have stored the record."""

    retriable = True


class DeliveryUnknownError(Error):
    """Delivery ended without a final answer: the record may have been stored."""

    definite = False


class NoOffsetForPartitionError(Error):
    """The partition has no valid position and auto_offset_reset is "none"."""


class RecordDecodeError(Error):
    """A stored record cannot be read: the consumer stops in front of it, it never skips it."""


def is_definite(error: Error) -> bool:
    """Whether the error proves that the request had no effect and never will."""
    # A code that only says "the broker failed" says nothing about how far it came.
    if isinstance(error, BrokerError) and error.code == KafkaErrorCode.UNKNOWN_SERVER_ERROR:
        return False
    return error.definite
