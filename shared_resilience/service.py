"""The service: where components are made, and what they share."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self, Unpack

from shared_resilience.adaptive_timeout import AdaptiveTimeout, AsyncAdaptiveTimeout
from shared_resilience.backends import OnOutage, step
from shared_resilience.bulkhead import AsyncBulkhead, Bulkhead
from shared_resilience.bulkhead_config import BulkheadConfig
from shared_resilience.circuit_breaker import AsyncCircuitBreaker, CircuitBreaker
from shared_resilience.circuit_config import CircuitBreakerConfig
from shared_resilience.diagnosis import Diagnosis
from shared_resilience.fallback_chain import AsyncFallbackChain, FallbackChain
from shared_resilience.fallback_config import FallbackConfig
from shared_resilience.fleet import Worker
from shared_resilience.functions import mirrors
from shared_resilience.health import Health
from shared_resilience.health_checker import AsyncHealthChecker, HealthChecker
from shared_resilience.health_config import HealthCheckConfig, HealthCheckType
from shared_resilience.idempotency import AsyncIdempotency, Idempotency
from shared_resilience.idempotency_config import IdempotencyConfig
from shared_resilience.limits import Limit
from shared_resilience.permits import AsyncPermits, Permits
from shared_resilience.plan import Parts, Plan
from shared_resilience.policy import AsyncPolicy, Policy
from shared_resilience.priority import Reserved
from shared_resilience.rate_limiter import AsyncRateLimiter, RateLimiter
from shared_resilience.retry_config import RetryConfig
from shared_resilience.retry_manager import AsyncRetryManager, RetryManager
from shared_resilience.runtimes import OfRuntime
from shared_resilience.timeout_config import TimeoutConfig


class ResilienceService(OfRuntime):
    """Components that a fleet of processes shares through one Redis.

    `client` and `async_client` are clients of redis-py, for one server or a cluster; their pools are used, as of the
    first call, never their retries. `from_url` makes both. Services of a process, server and prefix share their state.

    Options, all by keyword:

    - `prefix` ("sr"): what all keys in Redis start with.
    - `on_outage` (None: each component's default): how to decide while Redis is away. `"local"`: each process by its
      share of the limit; `"allow"`; `"deny"`; `"raise"`: `StoreUnavailableError`.
    - `expected_workers` (None): by how many processes to divide limits as long as Redis has never told.
    - `command_timeout` (0.1), `connect_timeout` (2.0): seconds that a command or a connection may take.
    - `sync_interval` (0.1): seconds for which what a process has seen may wait before it is told to the fleet.
    - `worker_id` (None: host, process id and a random part): this process in the lists of live workers.
    - `listeners` (): functions that are called with each `Event`.

    Raises `ValueError` for a wrong option or URL, `TypeError` for a client of another kind.
    """

    @property
    def aio(self) -> AsyncResilienceService:
        """The same service for asyncio: same keys, same state of this process."""
        return AsyncResilienceService._of(self._runtime)

    def get_or_create_rate_limiter(
        self,
        name: str,
        *limits: Limit,
        on_outage: OnOutage | None = None,
        remember_refusals: bool | None = None,
        shadow: bool | None = None,
        partitioned: bool | None = None,
        max_pause: float | None = None,
        lease_tokens: int | None = None,
        lease_seconds: float | None = None,
        reserved: Reserved | None = None,
    ) -> RateLimiter:
        """The rate limiter of the resource `name`; made by the first call, with the defaults of what is not given.

        `limits` (one `TokenBucket()`) are decided together, all or nothing; each needs a label of its own. `on_outage`
        is as for the service. `remember_refusals` (True) lets a process answer itself for up to a second after a
        refusal. `shadow` (False) decides and counts, and refuses nothing. `partitioned` (False) spreads the keys over a
        Redis Cluster, instead of keeping all of the resource in one slot. `max_pause` (60) is the longest pause in
        seconds.

        `lease_tokens` (None) lets a process take up to so many tokens of token buckets in one trip, and serve them from
        its memory for at most `lease_seconds` (0.5, from 0.001 to 60): no trip for most calls. In any t seconds the
        fleet then gets at most `capacity + refill_rate × (t + lease_seconds)`. From 1 to the smallest capacity.

        `reserved` (nothing) keeps shares of each limit for more important calls: with `{PriorityLevel.CRITICAL: 0.2}` a
        call of any lower priority passes only if it leaves a fifth of the limit. Not together with `lease_tokens`.

        Raises `ValueError` for a wrong value, and for a configuration other than that of the limiter that exists.
        """
        core = self._runtime.limiter(
            name,
            limits,
            on_outage=on_outage,
            remember_refusals=remember_refusals,
            shadow=shadow,
            partitioned=partitioned,
            max_pause=max_pause,
            lease_tokens=lease_tokens,
            lease_seconds=lease_seconds,
            reserved=reserved,
        )
        return RateLimiter(core, self._runtime.backends)

    def get_or_create_circuit_breaker(self, name: str, config: CircuitBreakerConfig | None = None) -> CircuitBreaker:
        """The circuit breaker of the resource `name`; made by the first call, by the defaults without a `config`.

        Raises `ValueError` for a configuration other than that of the breaker that exists.
        """
        return CircuitBreaker(self._runtime.breaker(name, config), self._runtime.backends)

    def get_or_create_bulkhead(self, name: str, config: BulkheadConfig | None = None) -> Bulkhead:
        """The bulkhead of the resource `name`; made by the first call, by the defaults without a `config`.

        Raises `ValueError` for a configuration other than that of the bulkhead that exists.
        """
        core = self._runtime.bulkhead(name, config)
        return Bulkhead(core, self._runtime.backends_of(core))

    def get_or_create_retry_manager(self, name: str, config: RetryConfig | None = None) -> RetryManager:
        """The retries of `name`; its budget is one for all processes, what is retried is this process's affair.

        Raises `ValueError` if they exist with another configuration.
        """
        return RetryManager(self._runtime.retries(name, config), self._runtime.backends)

    def get_or_create_adaptive_timeout(self, name: str, config: TimeoutConfig | None = None) -> AdaptiveTimeout:
        """The timeout `name`, which follows from the calls of all processes.

        Raises `ValueError` if it exists with another configuration.
        """
        return AdaptiveTimeout(self._runtime.latency(name, config), self._runtime.backends)

    def get_or_create_fallback_chain(self, name: str, config: FallbackConfig | None = None) -> FallbackChain:
        """The fallback chain `name`: the last good values are the fleet's, the handlers this process's.

        Raises `ValueError` if it exists with another configuration.
        """
        return FallbackChain(self._runtime.fallback(name, config), self._runtime.backends)

    def get_or_create_idempotency(self, name: str, config: IdempotencyConfig | None = None) -> Idempotency:
        """The calls of `name` that the fleet makes once for each key.

        Raises `ValueError` if they exist with another configuration.
        """
        return Idempotency(self._runtime.claims(name, config), self._runtime.backends)

    def get_or_create_health_checker(self, name: str, config: HealthCheckConfig | None = None) -> HealthChecker:
        """The health checker `name`; made by the first call, by default with `HealthCheckConfig()`.

        Raises `ValueError` for a configuration other than that of the checker that exists.
        """
        return HealthChecker(self._runtime.checkup(name, config), self._runtime.backends)

    def permits(self, name: str) -> Permits:
        """The rate limiter and the bulkhead of the resource `name`, entered together.

        Raises `LookupError` if one of them has not been made.
        """
        core = self._runtime.permits(name)
        return Permits(core, self._runtime.backends, self._runtime.backends_of(core.bulkhead))

    def policy(self, name: str, **parts: Unpack[Parts]) -> Policy:
        """Several components around one function: `call`, `protect` and `guard` of the policy, each part optional.

        From the outside in: `fallback_chain` (the function is its first level), `deadline` in seconds,
        `idempotency_key` with `idempotency_config`, `retry_config`, `circuit_breaker_config` or `circuit_breaker_name`
        or both, `rate_limits` and `bulkhead_config` in one trip, `timeout_config`. All parts are called `name`, but for
        the chain and a circuit breaker with a name of its own; parts of the same name share their state. What they
        refuse is not retried, and no failure of the dependency.

        `wait` (0) is for how many seconds limits may be waited for (None: as long as it takes); a slot of the bulkhead,
        for as long as that is configured. `key` (""), `cost` (1) and `priority` are those of the limits and the
        bulkhead: each a value, or a function of the arguments of the call, as `idempotency_key` is (of a method, `self`
        is the first).

        Raises `ValueError` for a wrong part, without any, and, as soon as it is used, for a part that exists with
        another configuration.
        """
        return Policy(Plan(name, **parts), lambda: self._runtime)

    def set_override(self, name: str, field: str, number: float) -> None:
        """Changes a number of a resource for the whole fleet, without a restart, until it is cleared.

        `field` is as in the resource's `config`, such as `limit.token_bucket.refill_rate` or `breaker.window`. Raises
        `ValueError` for another field or a number outside its range, `StoreUnavailableError` when Redis cannot be told.
        """
        step(self._runtime.override(self._runtime.backends.blocking, name, field, number))

    def clear_override(self, name: str, field: str) -> None:
        """Ends an override. Raises `StoreUnavailableError` when Redis cannot be told."""
        step(self._runtime.override(self._runtime.backends.blocking, name, field, None))

    def get_comprehensive_stats(self) -> dict[str, Any]:
        """What this process and, as of now, the fleet have counted; plain data, fit for JSON."""
        step(self._runtime.backends.blocking.refresh())
        return self._runtime.stats()

    def health(self, check_type: HealthCheckType = HealthCheckType.READINESS) -> Health:
        """How this process is: all checks of `check_type` and of the cheaper types, made now and at the same time.

        Those that are made in the background tell what they found last. READINESS and DEEP also tell in "store" whether
        Redis decides: if not, the process is degraded, for it goes on alone. A failure within the grace of a check
        shows in its result, not in the status.
        """
        return step(self._runtime.health(self._runtime.backends.blocking, check_type))

    def fleet(self) -> list[Worker]:
        """The processes seen in the last seconds, the last seen first; while Redis is away, this one alone."""
        return step(self._runtime.workers(self._runtime.backends.blocking))

    def check(self) -> Diagnosis:
        """Looks at Redis now: what it is like, what does not suit, and what to do about that; for people, as a text.

        Raises `StoreUnavailableError` or `StoreConfigurationError` if it cannot decide.
        """
        return step(self._runtime.check(self._runtime.backends.blocking))

    def close(self) -> None:
        """Gives leased tokens back, tells what is untold, and closes the connections that this service made."""
        step(self._runtime.close(self._runtime.backends.blocking))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@mirrors(ResilienceService)
class AsyncResilienceService(OfRuntime):
    def get_or_create_rate_limiter(
        self,
        name: str,
        *limits: Limit,
        on_outage: OnOutage | None = None,
        remember_refusals: bool | None = None,
        shadow: bool | None = None,
        partitioned: bool | None = None,
        max_pause: float | None = None,
        lease_tokens: int | None = None,
        lease_seconds: float | None = None,
        reserved: Reserved | None = None,
    ) -> AsyncRateLimiter:
        core = self._runtime.limiter(
            name,
            limits,
            on_outage=on_outage,
            remember_refusals=remember_refusals,
            shadow=shadow,
            partitioned=partitioned,
            max_pause=max_pause,
            lease_tokens=lease_tokens,
            lease_seconds=lease_seconds,
            reserved=reserved,
        )
        return AsyncRateLimiter(core, self._runtime.backends)

    def get_or_create_circuit_breaker(
        self, name: str, config: CircuitBreakerConfig | None = None
    ) -> AsyncCircuitBreaker:
        return AsyncCircuitBreaker(self._runtime.breaker(name, config), self._runtime.backends)

    def get_or_create_bulkhead(self, name: str, config: BulkheadConfig | None = None) -> AsyncBulkhead:
        core = self._runtime.bulkhead(name, config)
        return AsyncBulkhead(core, self._runtime.backends_of(core))

    def get_or_create_retry_manager(self, name: str, config: RetryConfig | None = None) -> AsyncRetryManager:
        return AsyncRetryManager(self._runtime.retries(name, config), self._runtime.backends)

    def get_or_create_adaptive_timeout(self, name: str, config: TimeoutConfig | None = None) -> AsyncAdaptiveTimeout:
        return AsyncAdaptiveTimeout(self._runtime.latency(name, config), self._runtime.backends)

    def get_or_create_fallback_chain(self, name: str, config: FallbackConfig | None = None) -> AsyncFallbackChain:
        return AsyncFallbackChain(self._runtime.fallback(name, config), self._runtime.backends)

    def get_or_create_idempotency(self, name: str, config: IdempotencyConfig | None = None) -> AsyncIdempotency:
        return AsyncIdempotency(self._runtime.claims(name, config), self._runtime.backends)

    def get_or_create_health_checker(self, name: str, config: HealthCheckConfig | None = None) -> AsyncHealthChecker:
        return AsyncHealthChecker(self._runtime.checkup(name, config), self._runtime.backends)

    def permits(self, name: str) -> AsyncPermits:
        core = self._runtime.permits(name)
        return AsyncPermits(core, self._runtime.backends, self._runtime.backends_of(core.bulkhead))

    def policy(self, name: str, **parts: Unpack[Parts]) -> AsyncPolicy:
        return AsyncPolicy(Plan(name, **parts), lambda: self._runtime)

    async def set_override(self, name: str, field: str, number: float) -> None:
        await self._runtime.override(self._runtime.backends.suspending, name, field, number)

    async def clear_override(self, name: str, field: str) -> None:
        await self._runtime.override(self._runtime.backends.suspending, name, field, None)

    async def get_comprehensive_stats(self) -> dict[str, Any]:
        await self._runtime.backends.suspending.refresh()
        return self._runtime.stats()

    async def health(self, check_type: HealthCheckType = HealthCheckType.READINESS) -> Health:
        return await self._runtime.health(self._runtime.backends.suspending, check_type)

    async def fleet(self) -> list[Worker]:
        return await self._runtime.workers(self._runtime.backends.suspending)

    async def check(self) -> Diagnosis:
        return await self._runtime.check(self._runtime.backends.suspending)

    async def close(self) -> None:
        await self._runtime.close(self._runtime.backends.suspending)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
