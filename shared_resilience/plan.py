"""The plan of a policy: which parts protect a function, and in which order they stand around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypedDict, Union

from shared_resilience import validation
from shared_resilience.bulkhead_config import BulkheadConfig
from shared_resilience.circuit_config import CircuitBreakerConfig
from shared_resilience.deadline import LONGEST
from shared_resilience.errors import BulkheadFullError, CircuitBreakerOpenError, RateLimitExceeded
from shared_resilience.fallback_chain import AsyncFallbackChain, FallbackChain
from shared_resilience.idempotency_config import IdempotencyConfig
from shared_resilience.limiter_keys import Key
from shared_resilience.limits import Limit
from shared_resilience.priority import PriorityLevel, priority_of
from shared_resilience.retries import Refusals
from shared_resilience.retry_config import RetryConfig
from shared_resilience.timeout_config import TimeoutConfig

Chain = Union[FallbackChain, AsyncFallbackChain]  # noqa: UP007  # an alias that stubs and tools can read

CONFIGS: dict[str, type] = {
    "circuit_breaker_config": CircuitBreakerConfig,
    "retry_config": RetryConfig,
    "bulkhead_config": BulkheadConfig,
    "timeout_config": TimeoutConfig,
    "idempotency_config": IdempotencyConfig,
}


class Parts(TypedDict, total=False):
    """The parts of a policy; `ResilienceService.policy` says what they mean."""

    rate_limits: Sequence[Limit]
    circuit_breaker_name: str | None
    circuit_breaker_config: CircuitBreakerConfig | None
    retry_config: RetryConfig | None
    bulkhead_config: BulkheadConfig | None
    timeout_config: TimeoutConfig | None
    fallback_chain: Chain | None
    deadline: float | None
    wait: float | None
    idempotency_key: Callable[..., object] | None
    idempotency_config: IdempotencyConfig | None
    key: Key | Callable[..., Key]
    cost: int | Callable[..., int]
    priority: PriorityLevel | Callable[..., PriorityLevel]


@dataclass(frozen=True)
class Plan:
    """The parts of one policy, checked. Raises `ValueError` for a wrong value, and if there is no part at all."""

    name: str
    rate_limits: Sequence[Limit] = ()
    circuit_breaker_name: str | None = None
    circuit_breaker_config: CircuitBreakerConfig | None = None
    retry_config: RetryConfig | None = None
    bulkhead_config: BulkheadConfig | None = None
    timeout_config: TimeoutConfig | None = None
    fallback_chain: Chain | None = None
    deadline: float | None = None
    wait: float | None = 0.0
    idempotency_key: Callable[..., object] | None = None
    idempotency_config: IdempotencyConfig | None = None
    key: Key | Callable[..., Key] = ""
    cost: int | Callable[..., int] = 1
    priority: PriorityLevel | Callable[..., PriorityLevel] = PriorityLevel.NORMAL

    def __post_init__(self) -> None:
        validation.text("name", self.name)
        self._check_parts()
        if self.deadline is not None:
            validation.number("deadline", self.deadline, 0.001, LONGEST)
        validation.timeout("wait", self.wait)
        if self.idempotency_key is not None and not callable(self.idempotency_key):
            raise validation.wrong("idempotency_key", self.idempotency_key, "a function of the arguments")
        if self.idempotency_config is not None and self.idempotency_key is None:
            raise ValueError("idempotency_config needs idempotency_key, a function of the arguments")
        if not callable(self.cost):
            validation.count("cost", self.cost)
        if not callable(self.priority):
            priority_of(self.priority)
        if not any(self.parts()):
            raise ValueError(f"policy {self.name!r} has no part: give it rate_limits, retry_config or another")

    def _check_parts(self) -> None:
        limits = self.rate_limits
        if not isinstance(limits, Sequence) or not all(isinstance(one, Limit) for one in limits):
            raise validation.wrong("rate_limits", limits, "a list of limits, such as [TokenBucket(100, 50)]")
        object.__setattr__(self, "rate_limits", tuple(limits))
        for field, kind in CONFIGS.items():
            config = getattr(self, field)
            if config is not None and not isinstance(config, kind):
                raise validation.wrong(field, config, f"a {kind.__name__}")
        if self.circuit_breaker_name is not None:
            validation.text("circuit_breaker_name", self.circuit_breaker_name)
        if self.fallback_chain is not None and not isinstance(self.fallback_chain, FallbackChain | AsyncFallbackChain):
            raise validation.wrong("fallback_chain", self.fallback_chain, "what get_or_create_fallback_chain returns")

    @property
    def breaker_name(self) -> str:
        """The name of the circuit breaker."""
        return self.circuit_breaker_name or self.name

    @property
    def has_breaker(self) -> bool:
        """Whether a circuit breaker is one of the parts."""
        return self.circuit_breaker_config is not None or self.circuit_breaker_name is not None

    def parts(self) -> Iterator[str]:
        """The parts in words, the outermost first."""
        if self.fallback_chain is not None:
            yield f"fallback chain {self.fallback_chain.name!r}"
        if self.deadline is not None:
            yield f"deadline of {self.deadline:g} s"
        if self.idempotency_key is not None:
            yield f"idempotency {self.name!r}: {_in_short(self.idempotency_config or IdempotencyConfig())}"
        if self.retry_config is not None:
            yield f"retry {self.name!r}: {_in_short(self.retry_config)}"
        if self.has_breaker:
            config = self.circuit_breaker_config
            yield f"circuit breaker {self.breaker_name!r}: {'as it is' if config is None else _in_short(config)}"
        permits = [*map(repr, self.rate_limits)]
        if self.bulkhead_config is not None:
            permits.append(_in_short(self.bulkhead_config))
        if permits:
            yield f"permits {self.name!r}: {', '.join(permits)}"
        if self.timeout_config is not None:
            yield f"adaptive timeout {self.name!r}: {_in_short(self.timeout_config)}"

    def refusals(self) -> Refusals:
        """The refusals by its own parts: they wait as long as they are told, and nobody is to wait once more."""
        name = self.name
        return frozenset(
            {(CircuitBreakerOpenError, self.breaker_name), (RateLimitExceeded, name), (BulkheadFullError, name)}
        )

    def unguardable(self) -> list[str]:
        """The parts that cannot stand around a block of code, since they call a function."""
        parts = {
            "fallback_chain": self.fallback_chain,
            "idempotency_key": self.idempotency_key,
            "retry_config": self.retry_config,
            "timeout_config": self.timeout_config,
        }
        return [name for name, part in parts.items() if part is not None]

    def tree(self, function: str) -> str:
        """The parts around `function`, a line each."""
        lines = [f"policy {self.name!r}"]
        for depth, part in enumerate([*self.parts(), function]):
            lines.append(f"{'   ' * depth}└─ {part}")
        return "\n".join(lines)


def _in_short(config: Any) -> str:
    """`config` by its first number and whatever else is not as usual; evaluates to the same."""
    usual = type(config)()
    told = [
        f"{field.name}={getattr(config, field.name)!r}"
        for index, field in enumerate(fields(config))
        if index == 0 or getattr(config, field.name) != getattr(usual, field.name)
    ]
    return f"{type(config).__name__}({', '.join(told)})"
