"""The exception tree: one class for each code, and flags that do not contradict each other."""

from __future__ import annotations

import pytest

from duolog_protocol import errors
from duolog_protocol.error_codes import KafkaErrorCode, ZkErrorCode
from duolog_protocol.errors import (
    BrokerError,
    Error,
    TransportError,
    ZkError,
    broker_error,
    zk_error,
)


def all_classes(base: type[Error]) -> list[type[Error]]:
    return [base, *[each for child in base.__subclasses__() for each in all_classes(child)]]


@pytest.mark.parametrize(
    ("base", "make", "codes"),
    [(ZkError, zk_error, ZkErrorCode), (BrokerError, broker_error, KafkaErrorCode)],
)
def test_every_class_has_a_code_of_its_own_and_is_made_from_it(base, make, codes) -> None:  # type: ignore[no-untyped-def]
    classes = [each for each in base.__subclasses__() if each.__module__ == errors.__name__]
    by_code = {int(each.code): each for each in classes}
    assert len(by_code) == len(classes), "two classes for one code"
    for code, each in by_code.items():
        made = make(code, "told so")
        assert type(made) is each and str(made) == "told so"
        assert int(made.code) == code == codes(code)
        assert str(make(code)), "an error without text says what it is"


def test_a_code_that_nobody_knows_is_still_an_error_with_its_number() -> None:
    for made, base in ((zk_error(-9999), ZkError), (broker_error(9999), BrokerError)):
        assert type(made) is base
        assert str(made.code) in str(made)
    unknown = broker_error(KafkaErrorCode.UNKNOWN_SERVER_ERROR, "oops")
    assert (type(unknown), unknown.code) == (BrokerError, KafkaErrorCode.UNKNOWN_SERVER_ERROR)


def test_the_flags_say_what_to_do_without_contradiction() -> None:
    for each in all_classes(Error):
        if each.refresh_metadata:
            assert each.retriable, f"{each.__name__}: why look for the leader if not to retry?"
        if issubclass(each, TransportError):
            assert each.retriable and not each.definite, each.__name__
    for each in (errors.NodeExistsError, errors.BadVersionError, errors.MessageTooLargeError):
        assert each.definite and not each.retriable
    for each in (errors.BrokerRequestTimedOutError, errors.NotLeaderOrFollowerError):
        assert each.retriable and not each.definite
    assert errors.StorageFullError.retriable and errors.StorageFullError.definite
