"""Each error of redis-py means one thing."""

from __future__ import annotations

import pytest
from redis import exceptions as e

from shared_resilience import StoreConfigurationError, StoreUnavailableError
from shared_resilience.backends.faults import Fault, StoreError, classify

BEFORE_7 = "Error running script (call to f_6b1bf486c81ceb7edf3c093f4c48582e38c0e791): @user_script:7: "
ROWS = [
    (e.ConnectionError("Error 111 connecting to 127.0.0.1:6379. Connection refused."), False, Fault.UNREACHABLE),
    (e.ConnectionError("Connection closed by server."), True, Fault.UNKNOWN),
    (e.TimeoutError("Timeout connecting to server"), False, Fault.UNREACHABLE),
    (e.TimeoutError("Timeout reading from socket"), True, Fault.UNKNOWN),
    (TimeoutError(), True, Fault.UNKNOWN),
    (OSError(9, "Bad file descriptor"), True, Fault.UNKNOWN),
    (e.InvalidResponse("Protocol Error"), True, Fault.UNKNOWN),
    (e.MaxConnectionsError("Too many connections"), False, Fault.SATURATED),
    (e.ConnectionError("Too many connections"), False, Fault.SATURATED),
    (e.ConnectionError("No connection available."), False, Fault.SATURATED),
    (e.BusyLoadingError("Redis is loading the dataset in memory"), True, Fault.NOT_NOW),
    (e.ResponseError("LOADING Redis is loading the dataset in memory"), True, Fault.NOT_NOW),
    (e.ResponseError("BUSY Redis is busy running a script."), True, Fault.NOT_NOW),
    (e.ResponseError("MISCONF Redis is configured to save RDB snapshots"), True, Fault.NOT_NOW),
    (e.ResponseError("NOREPLICAS Not enough good replicas to write."), True, Fault.NOT_NOW),
    (e.ResponseError("OOM command not allowed when used memory > 'maxmemory'."), True, Fault.NOT_NOW),
    (e.ResponseError(BEFORE_7 + "-OOM command not allowed when used memory > 'maxmemory'."), True, Fault.NOT_NOW),
    (e.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), True, Fault.NOT_NOW),
    (e.ClusterDownError("CLUSTERDOWN The cluster is down"), True, Fault.NOT_NOW),
    (e.MasterDownError("MASTERDOWN Link with MASTER is down"), True, Fault.NOT_NOW),
    (e.TryAgainError("Multiple keys request during rehashing of slot"), True, Fault.NOT_NOW),
    (e.SlotNotCoveredError('Slot "0" is not covered by the cluster.'), False, Fault.NOT_NOW),
    (e.ReadOnlyError("You can't write against a read only replica."), True, Fault.READ_ONLY),
    (e.ResponseError(BEFORE_7 + "-READONLY You can't write against a read only replica."), True, Fault.READ_ONLY),
    (e.AuthenticationError("invalid username-password pair or user is disabled."), False, Fault.CONFIGURATION),
    (e.AuthorizationError("not allowed"), False, Fault.CONFIGURATION),
    (e.NoPermissionError("this user has no permissions to run the 'evalsha' command"), True, Fault.CONFIGURATION),
    (e.ResponseError("NOAUTH Authentication required."), True, Fault.CONFIGURATION),
    (e.ResponseError("ERR Protocol error: unauthenticated multibulk length"), True, Fault.CONFIGURATION),
    (e.ResponseError("WRONGPASS invalid username-password pair"), True, Fault.CONFIGURATION),
    (e.ResponseError(BEFORE_7 + "The user executing the script can't run this command"), True, Fault.CONFIGURATION),
    (e.ConnectionError("Error 1 connecting to a:1. [SSL: CERTIFICATE_VERIFY_FAILED] …"), False, Fault.CONFIGURATION),
    (e.ConnectionError("Error 1 connecting to a:1. [SSL: WRONG_VERSION_NUMBER] …"), False, Fault.CONFIGURATION),
    (e.ConnectionError("Error 1 connecting to a:1. [SSL: UNEXPECTED_EOF_WHILE_READING] …"), False, Fault.UNREACHABLE),
    (e.RedisClusterException("Redis Cluster cannot be connected. Please provide…"), False, Fault.UNREACHABLE),
    (e.MovedError("1234 127.0.0.1:7001"), True, Fault.CONFIGURATION),
    (e.ClusterCrossSlotError("Keys in request don't hash to the same slot"), True, Fault.CONFIGURATION),
    (e.RedisClusterException("EVALSHA - all keys must map to the same key slot"), False, Fault.CONFIGURATION),
    (e.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"), True, Fault.REJECTED),
    (e.ResponseError("ERR cost must be an integer from 1 to 2^53 - 1"), True, Fault.REJECTED),
    (e.ResponseError("ERR something about an OOM-like word"), True, Fault.REJECTED),
]


@pytest.mark.parametrize(("error", "sent", "fault"), ROWS, ids=lambda value: str(value)[:50])
def test_an_error_means_one_thing(error: Exception, sent: bool, fault: Fault) -> None:
    assert classify(error, sent) is fault


def test_only_an_outcome_that_is_known_allows_sending_again() -> None:
    assert [fault.name for fault in Fault if not fault.ran_not] == ["UNKNOWN", "REJECTED"]


def test_callers_see_two_classes() -> None:
    assert isinstance(StoreError(e.TimeoutError("late"), sent=True).public(), StoreUnavailableError)
    assert isinstance(StoreError(e.AuthenticationError("no"), sent=False).public(), StoreConfigurationError)
