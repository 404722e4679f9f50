"""What a process took while Redis was away is charged when it is back: a little at a time, each charge once."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from shared_resilience.backends.faults import StoreError
from shared_resilience.backends.process import Bill, Process
from shared_resilience.backends.redis import RedisStore
from shared_resilience.heartbeat import Resource

logger = logging.getLogger("shared_resilience")

CHARGES_AT_ONCE = 50
"""Of each component: few enough for a server to which many processes come back at the same time."""

BETWEEN_CHARGES = 0.02
"""Seconds, on average."""


async def pay(store: RedisStore, process: Process, shares: Mapping[Resource, int]) -> bool:
    """Pays some of each component's debts; whether there may be more that can be paid now. Never raises an error."""
    more = False
    for component in list(process.components.values()):
        try:
            bill = component.bill(CHARGES_AT_ONCE, shares)
            if bill is not None:
                more = await settle(store, bill) or more
        except StoreError as error:
            logger.warning("what was taken without Redis could not be told: %s", error)
            return False
        except Exception:  # whatever it is, it must not keep this process away from Redis
            logger.exception("what was taken without Redis could not be worked out")
    return more


async def settle(store: RedisStore, bill: Bill) -> bool:
    """Sends charges, and puts back those that have certainly not run; whether all have. Raises `StoreError`."""
    left, all_have_run = list(range(len(bill.commands))), True
    try:
        while left:  # the first one by itself, which introduces the script to a new server
            sent = left[:1] if len(left) == len(bill.commands) else left[:]
            del left[: len(sent)]
            try:
                replies = await store.try_all([bill.commands[index] for index in sent])
            except StoreError as error:
                left += sent if error.fault.ran_not else ()
                raise
            for index, reply in zip(sent, replies, strict=True):
                if isinstance(reply, StoreError):
                    all_have_run = False
                    logger.warning("what was taken without Redis could not be told: %s", reply)
                    if reply.fault.ran_not:
                        bill.put_back(index)
    finally:
        for index in left:
            bill.put_back(index)
    return all_have_run
