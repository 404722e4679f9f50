"""What an error of redis-py means, in one place: whether the command may have run, and what to do next."""

from __future__ import annotations

import re
from enum import Enum

from redis import exceptions as redis_errors

from shared_resilience.errors import StoreConfigurationError, StoreUnavailableError

FOREIGN = (redis_errors.RedisError, redis_errors.RedisClusterException, OSError, EOFError)
"""What redis-py raises."""


class StoreError(Exception):
    """An error of redis-py, wrapped once, where it arose; callers see it as `public()`."""

    def __init__(self, error: Exception, sent: bool) -> None:
        self.fault = classify(error, sent)
        self.hung_up = self.fault is Fault.UNKNOWN and not isinstance(error, redis_errors.TimeoutError | TimeoutError)
        self._remedy = _remedy(error) if self.fault is Fault.CONFIGURATION else ""
        super().__init__(f"{type(error).__name__}: {error}")

    def public(self) -> StoreUnavailableError | StoreConfigurationError:
        if self.fault is Fault.CONFIGURATION:
            return StoreConfigurationError(f"{str(self).rstrip('.')}. {self._remedy}")
        return StoreUnavailableError(f"{self.fault.value} ({self})")


class Fault(Enum):
    """The kinds of trouble with Redis, by what follows from them."""

    UNREACHABLE = "no connection; nothing was sent"
    UNKNOWN = "sent, but no reply: it may have run"
    SATURATED = "all connections of this process are in use; nothing was sent"
    NOT_NOW = "refused without running: loading, busy, out of memory, cluster down, too few replicas"
    READ_ONLY = "refused without running by a replica that is no longer the primary"
    CONFIGURATION = "refused for what this client is or may do"
    REJECTED = "the script failed on these keys or arguments"

    @property
    def ran_not(self) -> bool:
        """Whether the command certainly did not run, so that it may be sent again."""
        return self not in (Fault.UNKNOWN, Fault.REJECTED)


_BY_WORD = {
    "LOADING": Fault.NOT_NOW,
    "BUSY": Fault.NOT_NOW,
    "OOM": Fault.NOT_NOW,
    "MISCONF": Fault.NOT_NOW,
    "NOREPLICAS": Fault.NOT_NOW,
    "CLUSTERDOWN": Fault.NOT_NOW,
    "MASTERDOWN": Fault.NOT_NOW,
    "TRYAGAIN": Fault.NOT_NOW,
    "READONLY": Fault.READ_ONLY,
    "NOPERM": Fault.CONFIGURATION,
    "NOAUTH": Fault.CONFIGURATION,
    "WRONGPASS": Fault.CONFIGURATION,
    "NOPROTO": Fault.CONFIGURATION,
    "CROSSSLOT": Fault.CONFIGURATION,
    "MOVED": Fault.CONFIGURATION,
    "ASK": Fault.CONFIGURATION,
}
# "-OOM command not allowed" comes wrapped from inside a script before Redis 7; some classes of redis-py strip the word.
_WORD = re.compile(r"(?:^|[-\s])(" + "|".join(_BY_WORD) + r")(?=\s)")
_DENIED = re.compile(
    r"can't run this command|can't access at least one of the keys|No permissions|unauthenticated (multi)?bulk", re.I
)
_TLS_REFUSED = re.compile(
    r"CERTIFICATE_VERIFY_FAILED|WRONG_VERSION_NUMBER|HANDSHAKE_FAILURE|CERTIFICATE_REQUIRED", re.I
)
_EXHAUSTED = ("Too many connections", "No connection available")
_BY_CLASS: tuple[tuple[type[Exception], Fault], ...] = (
    (redis_errors.AuthenticationError, Fault.CONFIGURATION),
    (redis_errors.AuthorizationError, Fault.CONFIGURATION),
    (redis_errors.AuthenticationWrongNumberOfArgsError, Fault.CONFIGURATION),
    (redis_errors.NoPermissionError, Fault.CONFIGURATION),
    (redis_errors.BusyLoadingError, Fault.NOT_NOW),
    (redis_errors.ReadOnlyError, Fault.READ_ONLY),
    (redis_errors.OutOfMemoryError, Fault.NOT_NOW),
    (redis_errors.ClusterDownError, Fault.NOT_NOW),
    (redis_errors.AskError, Fault.CONFIGURATION),  # and MovedError: a cluster, but a client for one server
    (redis_errors.TryAgainError, Fault.NOT_NOW),
    (redis_errors.SlotNotCoveredError, Fault.NOT_NOW),
    (redis_errors.ClusterCrossSlotError, Fault.CONFIGURATION),
    (redis_errors.ClusterError, Fault.NOT_NOW),
    (redis_errors.RedisClusterException, Fault.CONFIGURATION),
)


_REMEDIES = (
    (_TLS_REFUSED, "Name who signed the certificate (ssl_ca_certs= in the URL), and the host for which it was issued."),
    (
        re.compile(r"permission|can't run this command|can't access at least one of the keys|NOPERM", re.I),
        "The user lacks permissions: `shared-resilience doctor` names them, `shared-resilience acl` prints them all.",
    ),
    (
        re.compile(r"Moved|\bAsk|slot|cluster|EVALSHA - ", re.I),
        "A Redis Cluster needs a RedisCluster client.",
    ),
    (re.compile(r"Auth|password", re.I), "Check user and password, or the URL that names them."),
)


def _remedy(error: Exception) -> str:
    """What to do about a refusal of this client."""
    text = f"{type(error).__name__}: {error}"
    return next((remedy for what, remedy in _REMEDIES if what.search(text)), "`shared-resilience doctor` looks closer.")


def classify(error: Exception, sent: bool) -> Fault:
    """The fault behind `error`; `sent` says whether the command had gone out when it was raised."""
    if "cannot be connected" in str(error):  # a cluster of which no node answers
        return Fault.UNREACHABLE
    for kind, fault in _BY_CLASS:
        if isinstance(error, kind):
            return fault
    # A subclass of ConnectionError since redis-py 5.1, a bare ConnectionError with these words before.
    if isinstance(error, redis_errors.MaxConnectionsError) or str(error).startswith(_EXHAUSTED):
        return Fault.SATURATED
    if isinstance(error, redis_errors.ResponseError):
        text = str(error)
        if word := _WORD.search(text):
            return _BY_WORD[word[1]]
        return Fault.CONFIGURATION if _DENIED.search(text) else Fault.REJECTED
    if _TLS_REFUSED.search(str(error)):
        return Fault.CONFIGURATION
    return Fault.UNKNOWN if sent else Fault.UNREACHABLE
