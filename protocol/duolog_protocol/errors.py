"""The exception tree.

    Error
    ├── ServerError           the server answered with an error code
    │   ├── ZkError           ... of ZkErrorCode: NoNodeError, NodeExistsError, ...
    │   └── BrokerError       ... of KafkaErrorCode: NotLeaderOrFollowerError, ...
    ├── TransportError        no answer: ConnectionLostError, RequestTimeoutError
    ├── ProtocolError
    │   ├── LocalProtocolError    our side broke the protocol: a bug
    │   ├── RemoteProtocolError   the peer did: close the connection
    │   └── PeerRefusedError      another server of an ensemble does not take ours
    ├── StorageError          CorruptRecordError, DiskFullError, LogOfflineError, DirectoryMismatch
    └── ConfigError           a setting: field, value, rule

Every class says what to do about it: `retriable` (the same request may succeed later),
`definite` (it did not happen and never will; the others may have happened), `refresh_metadata`
(look up who leads before retrying). Retry loops read these flags, never lists of classes.
The idea of definite errors is Maelstrom's; the flags `retriable` and `invalid_metadata` are
aiokafka's.
"""

from __future__ import annotations

from typing import ClassVar

from .error_codes import KafkaErrorCode, ZkErrorCode


class Error(Exception):
    """Base of everything that duolog raises on purpose."""

    retriable: ClassVar[bool] = False
    definite: ClassVar[bool] = True
    refresh_metadata: ClassVar[bool] = False


class TransportError(Error):
    """There was no answer: the request may have happened."""

    retriable = True
    definite = False
    refresh_metadata = True


class ConnectionLostError(TransportError):
    """The connection ended before the answer came."""


class RequestTimeoutError(TransportError):
    """The answer did not come in time."""


class ConnectionClosedError(Error):
    """This client was closed; the request was not sent."""


class WatchOverflowError(Error):
    """Watch events came faster than they were taken; some were dropped: read again."""


class LockTimeoutError(Error):
    """A recipe did not get what it waits for in time; it has withdrawn its claim."""

    retriable = True


class ProtocolError(Error):
    """A side broke the wire protocol."""


class LocalProtocolError(ProtocolError):
    """Our side asked for something that the protocol forbids: a bug of the caller."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something that the protocol forbids: close the connection."""


class FrameTooLargeError(RemoteProtocolError):
    """A frame claims to be longer than this side accepts."""

    def __init__(self, length: int, limit: int) -> None:
        super().__init__(f"frame of {length} bytes is over the limit of {limit} bytes")
        self.length = length
        self.limit = limit


class DecodeError(RemoteProtocolError):
    """A header or a field of it is not what the message's schema says."""


class PeerRefusedError(ProtocolError):
    """Another server does not take this one for a server of its ensemble."""

    def __init__(self, server_id: int, reason: int, message: str) -> None:
        super().__init__(f"server {server_id} refuses us, reason {reason}: {message}")
        self.server_id = server_id
        """Whom we had dialled."""
        self.reason = reason
        """A `quorum_messages.RefusalReason`; a newer server may know others."""


class StorageError(Error):
    """A file of a data directory cannot be used as it is."""


class CorruptRecordError(StorageError):
    """A file is damaged where only a torn tail could be forgiven."""

    def __init__(self, path: str, position: int, problem: str) -> None:
        super().__init__(f"{path} is damaged at byte {position}: {problem}")
        self.path = path
        self.position = position
        self.problem = problem


class DataDirectoryError(StorageError):
    """A data directory belongs to another server, version or process."""


class DiskFullError(StorageError):
    """There is no space for an append. It did not happen; it may succeed once there is space."""

    retriable = True


class LogOfflineError(StorageError):
    """A failed sync or truncation took this log directory out of service for good."""


class ConfigError(Error):
    """A setting is unknown or has a value that its rule forbids."""

    def __init__(self, field: str, value: object, rule: str) -> None:
        super().__init__(f"setting {field} = {value!r}: {rule}")
        self.field = field
        self.value = value
        self.rule = rule


class ServerError(Error):
    """The server answered with an error code."""

    code: int

    def __init__(self, message: str = "", code: int | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip())
        if code is not None:
            self.code = code


class ZkError(ServerError):
    """zkserver refused the request."""

    code: int = ZkErrorCode.API_ERROR


class NoNodeError(ZkError):
    """The znode does not exist."""

    code = ZkErrorCode.NO_NODE


class NodeExistsError(ZkError):
    """The znode already exists."""

    code = ZkErrorCode.NODE_EXISTS


class BadVersionError(ZkError):
    """The znode has another version than the one the request names."""

    code = ZkErrorCode.BAD_VERSION


class NotEmptyError(ZkError):
    """The znode has children."""

    code = ZkErrorCode.NOT_EMPTY


class NoChildrenForEphemeralsError(ZkError):
    """An ephemeral znode cannot have children."""

    code = ZkErrorCode.NO_CHILDREN_FOR_EPHEMERALS


class SessionExpiredError(ZkError):
    """The session has expired: its ephemeral znodes and watches are gone."""

    code = ZkErrorCode.SESSION_EXPIRED


class SessionMovedError(ZkError):
    """The session is attached to another connection now."""

    code = ZkErrorCode.SESSION_MOVED


class BadArgumentsError(ZkError):
    """An argument is not legal."""

    code = ZkErrorCode.BAD_ARGUMENTS


class MarshallingError(ZkError):
    """The request could not be decoded."""

    code = ZkErrorCode.MARSHALLING_ERROR


class UnimplementedError(ZkError):
    """The server does not know this operation."""

    code = ZkErrorCode.UNIMPLEMENTED


class InvalidACLError(ZkError):
    """The ACL is empty or names an unknown scheme."""

    code = ZkErrorCode.INVALID_ACL


class NoAuthError(ZkError):
    """The ACL of the znode forbids this."""

    code = ZkErrorCode.NO_AUTH


class AuthFailedError(ZkError):
    """The credentials were refused."""

    code = ZkErrorCode.AUTH_FAILED


class SystemZkError(ZkError):
    """The server met a fault of its own; the request may have happened."""

    code = ZkErrorCode.SYSTEM_ERROR
    definite = False


class NewConfigNoQuorumError(ZkError):
    """The new ensemble would have no quorum that is up to date."""

    code = ZkErrorCode.NEW_CONFIG_NO_QUORUM
    retriable = True


class ReconfigInProgressError(ZkError):
    """Another change of the ensemble's members is under way."""

    code = ZkErrorCode.RECONFIG_IN_PROGRESS
    retriable = True


class ReconfigDisabledError(ZkError):
    """The server does not allow its members to be changed."""

    code = ZkErrorCode.RECONFIG_DISABLED


class UnknownSessionError(ZkError):
    """The connection has no session."""

    code = ZkErrorCode.UNKNOWN_SESSION


class NotReadOnlyError(ZkError):
    """The server has no quorum and serves reads only: ask another one, or later."""

    code = ZkErrorCode.NOT_READ_ONLY
    retriable = True


class EphemeralOnLocalSessionError(ZkError):
    """A session that only one server knows cannot own ephemeral znodes."""

    code = ZkErrorCode.EPHEMERAL_ON_LOCAL_SESSION


class NoWatcherError(ZkError):
    """There is no such watch."""

    code = ZkErrorCode.NO_WATCHER


class SaslAuthRequiredError(ZkError):
    """The server serves nobody who has not authenticated; the session is closed."""

    code = ZkErrorCode.SESSION_CLOSED_REQUIRE_SASL_AUTH


class QuotaExceededError(ZkError):
    """The request would pass a limit: of a quota, or of what one session may have."""

    code = ZkErrorCode.QUOTA_EXCEEDED


class ServerTimedOutError(ZkError):
    """The server gave up on the request; it may have happened."""

    code = ZkErrorCode.REQUEST_TIMEOUT
    retriable = True
    definite = False


class RolledBackError(ZkError):
    """An operation of a multi failed before or after this one, so none was applied."""

    code = ZkErrorCode.RUNTIME_INCONSISTENCY


class ServerBehindClientError(ZkError):
    """This server has not yet seen what the client has seen: ask another one, or later."""

    code = ZkErrorCode.SERVER_BEHIND_CLIENT
    retriable = True


class StorageFullError(ZkError):
    """The server has no disk space for the write. It did not happen."""

    code = ZkErrorCode.STORAGE_FULL
    retriable = True


class RequestTooLargeError(ZkError):
    """The request or the transaction it would become is over a limit."""

    code = ZkErrorCode.REQUEST_TOO_LARGE


class ThrottledOpError(ZkError):
    """The server is overloaded. It did not happen."""

    code = ZkErrorCode.THROTTLED_OP
    retriable = True


class BrokerError(ServerError):
    """kbroker refused the request."""

    code: int = KafkaErrorCode.UNKNOWN_SERVER_ERROR


class OffsetOutOfRangeError(BrokerError):
    """The offset is not in [log_start_offset, log_end_offset]."""

    code = KafkaErrorCode.OFFSET_OUT_OF_RANGE


class CorruptMessageError(BrokerError):
    """The record batch is damaged: its CRC or its lengths do not fit."""

    code = KafkaErrorCode.CORRUPT_MESSAGE
    retriable = True


class UnknownTopicOrPartitionError(BrokerError):
    """The topic or the partition does not exist here."""

    code = KafkaErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    retriable = True
    refresh_metadata = True


class LeaderNotAvailableError(BrokerError):
    """The partition has no leader at the moment."""

    code = KafkaErrorCode.LEADER_NOT_AVAILABLE
    retriable = True
    refresh_metadata = True


class NotLeaderOrFollowerError(BrokerError):
    """The broker does not lead the partition."""

    code = KafkaErrorCode.NOT_LEADER_OR_FOLLOWER
    retriable = True
    refresh_metadata = True
    definite = False  # a parked produce may have been appended before leadership moved


class BrokerRequestTimedOutError(BrokerError):
    """The broker gave up waiting for acknowledgements; the records may have been stored."""

    code = KafkaErrorCode.REQUEST_TIMED_OUT
    retriable = True
    definite = False


class BrokerNotAvailableError(BrokerError):
    """The broker is not registered at the moment."""

    code = KafkaErrorCode.BROKER_NOT_AVAILABLE
    retriable = True
    refresh_metadata = True


class MessageTooLargeError(BrokerError):
    """The record batch is over max_message_bytes."""

    code = KafkaErrorCode.MESSAGE_TOO_LARGE


class InvalidTopicError(BrokerError):
    """The topic name is not legal."""

    code = KafkaErrorCode.INVALID_TOPIC_EXCEPTION


class RecordListTooLargeError(BrokerError):
    """The record batch is larger than a segment."""

    code = KafkaErrorCode.RECORD_LIST_TOO_LARGE


class NotEnoughReplicasError(BrokerError):
    """Fewer replicas are in sync than min_insync_replicas; nothing was stored."""

    code = KafkaErrorCode.NOT_ENOUGH_REPLICAS
    retriable = True


class NotEnoughReplicasAfterAppendError(BrokerError):
    """The records were stored, but on fewer replicas than min_insync_replicas."""

    code = KafkaErrorCode.NOT_ENOUGH_REPLICAS_AFTER_APPEND
    retriable = True
    definite = False


class InvalidRequiredAcksError(BrokerError):
    """acks must be 0, 1 or all."""

    code = KafkaErrorCode.INVALID_REQUIRED_ACKS


class InvalidTimestampError(BrokerError):
    """A record's timestamp is too far from the broker's clock."""

    code = KafkaErrorCode.INVALID_TIMESTAMP


class UnsupportedVersionError(BrokerError):
    """The broker does not know this api or this version of it."""

    code = KafkaErrorCode.UNSUPPORTED_VERSION


class TopicAlreadyExistsError(BrokerError):
    """The topic already exists."""

    code = KafkaErrorCode.TOPIC_ALREADY_EXISTS


class InvalidPartitionsError(BrokerError):
    """The number of partitions is not legal."""

    code = KafkaErrorCode.INVALID_PARTITIONS


class InvalidReplicationFactorError(BrokerError):
    """The replication factor is below 1 or above the number of brokers."""

    code = KafkaErrorCode.INVALID_REPLICATION_FACTOR


class InvalidReplicaAssignmentError(BrokerError):
    """The replica assignment names unknown brokers or leaves partitions out."""

    code = KafkaErrorCode.INVALID_REPLICA_ASSIGNMENT


class InvalidConfigError(BrokerError):
    """A topic setting is unknown or has an illegal value."""

    code = KafkaErrorCode.INVALID_CONFIG


class NotControllerError(BrokerError):
    """This broker is not the controller."""

    code = KafkaErrorCode.NOT_CONTROLLER
    retriable = True
    refresh_metadata = True


class InvalidRequestError(BrokerError):
    """The request contradicts itself or its api."""

    code = KafkaErrorCode.INVALID_REQUEST


class OutOfOrderSequenceNumberError(BrokerError):
    """A batch of this producer before this one is missing."""

    code = KafkaErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER


class DuplicateSequenceNumberError(BrokerError):
    """The batch was already stored, too long ago to say at which offset."""

    code = KafkaErrorCode.DUPLICATE_SEQUENCE_NUMBER


class InvalidProducerEpochError(BrokerError):
    """A newer incarnation of this producer has fenced this one."""

    code = KafkaErrorCode.INVALID_PRODUCER_EPOCH


class KafkaStorageError(BrokerError):
    """The broker's log directory is full or out of service."""

    code = KafkaErrorCode.KAFKA_STORAGE_ERROR
    retriable = True
    refresh_metadata = True


class UnknownProducerIdError(BrokerError):
    """The broker remembers nothing of this producer id."""

    code = KafkaErrorCode.UNKNOWN_PRODUCER_ID


class FencedLeaderEpochError(BrokerError):
    """The request carries an older leader epoch than the broker's."""

    code = KafkaErrorCode.FENCED_LEADER_EPOCH
    retriable = True
    refresh_metadata = True


class UnknownLeaderEpochError(BrokerError):
    """The request carries a newer leader epoch than the broker's."""

    code = KafkaErrorCode.UNKNOWN_LEADER_EPOCH
    retriable = True


class UnsupportedCompressionTypeError(BrokerError):
    """The batch's codec is not known."""

    code = KafkaErrorCode.UNSUPPORTED_COMPRESSION_TYPE


class OffsetNotAvailableError(BrokerError):
    """The leader does not yet know the high watermark."""

    code = KafkaErrorCode.OFFSET_NOT_AVAILABLE
    retriable = True


class InvalidRecordError(BrokerError):
    """The record batch breaks a rule of its topic."""

    code = KafkaErrorCode.INVALID_RECORD


def _by_code(base: type[ServerError]) -> dict[int, type[ServerError]]:
    return {int(each.code): each for each in base.__subclasses__()}


_ZK_ERRORS = _by_code(ZkError)
_BROKER_ERRORS = _by_code(BrokerError)


def zk_error(code: int, message: str = "") -> ZkError:
    """The exception for an error code of zkserver."""
    each = _ZK_ERRORS.get(code)
    if each is None:
        return ZkError(message or f"error {_name(ZkErrorCode, code)}", code)
    error = each(message)
    assert isinstance(error, ZkError), each
    return error


def broker_error(code: int, message: str = "") -> BrokerError:
    """The exception for an error code of kbroker."""
    each = _BROKER_ERRORS.get(code)
    if each is None:
        return BrokerError(message or f"error {_name(KafkaErrorCode, code)}", code)
    error = each(message)
    assert isinstance(error, BrokerError), each
    return error


def _name(codes: type[ZkErrorCode] | type[KafkaErrorCode], code: int) -> str:
    try:
        return f"{codes(code).name} ({code})"
    except ValueError:
        return str(code)
