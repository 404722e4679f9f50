"""A small payment API of several worker processes that share their limits, circuits, slots and idempotency keys."""
