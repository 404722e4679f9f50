"""What a user of Redis must be permitted, worked out from the scripts and from what the client sends besides."""

from __future__ import annotations

import re
from functools import cache

from shared_resilience import scripts

_CALLED = re.compile(r'redis\.p?call\(\s*"([A-Z]+)"')

CLIENT = ("select", "evalsha", "script|load", "subscribe", "unsubscribe")
"""Sent by the client; the last two hear who may go into a bulkhead, or that a call that is made once is over.

Without them, those who wait look by themselves.
"""

OF_CLUSTERS = ("cluster|slots", "command", "asking")
"""Sent by redis-py's cluster clients."""

OF_OPERATORS = ("scan", "unlink", "info", "dbsize", "memory|usage", "script|exists", "acl|whoami", "cluster|info")
"""For `reset_all`, and for all that a self-check looks at."""

PROBES: dict[str, tuple[object, ...]] = {
    "set": ("", "PX", 1000),
    "exists": (),
    "hdel": ("f",),
    "hexists": ("f",),
    "hgetall": (),
    "hincrby": ("f", 1),
    "hkeys": (),
    "hlen": (),
    "hmget": ("f",),
    "hset": ("f", 1),
    "persist": (),
    "pexpire": (1000,),
    "zadd": (1, "m"),
    "zcard": (),
    "zcount": (0, 0),
    "zrange": (0, 0),
    "zrangebyscore": (0, 0),
    "zrank": ("m",),
    "zrem": ("m",),
    "zremrangebyrank": (0, 0),
    "zremrangebyscore": (0, 0),
    "zrevrange": (0, 0),
    "zrevrangebyscore": (0, 0),
    "zscore": ("m",),
    "del": (),
}
"""Arguments by which each command that scripts call can be tried on a key of the check's own.

The key holds a text until its end, so that whatever is permitted fails without a trace; what is not says NOPERM.
"""


@cache
def commands_of_scripts() -> tuple[str, ...]:
    """The commands that scripts call, in small letters, sorted."""
    texts = (scripts.load(name).text for name in scripts.names())
    return tuple(sorted({command.lower() for text in texts for command in _CALLED.findall(text)}))


def rules(prefix: str, *, cluster: bool = False, operator: bool = False) -> str:
    """The rules of an ACL that permit the keys and channels of `prefix` and the commands that are needed, no more."""
    commands = [*CLIENT, *commands_of_scripts()]
    commands += OF_CLUSTERS if cluster else ()
    commands += OF_OPERATORS if operator else ()
    return " ".join([f"~{prefix}:* {channels(prefix)}", *(f"+{command}" for command in dict.fromkeys(commands))])


def channels(prefix: str) -> str:
    """The rules for channels alone. Before Redis 7, a user may hear and send all of them until they are reset."""
    return f"resetchannels &{prefix}:*"


def line(prefix: str, user: str, *, cluster: bool = False, operator: bool = False) -> str:
    """A line for redis-cli that makes `user`, who may do what is needed and nothing else, with a password to put in."""
    return f"ACL SETUSER {user} reset on >PASSWORD {rules(prefix, cluster=cluster, operator=operator)}"
