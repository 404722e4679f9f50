"""Distributed resilience backed by shared Redis state: limits that a whole fleet of processes keeps together."""

from shared_resilience.adaptive_timeout import AdaptiveTimeout, AsyncAdaptiveTimeout, Timeouts
from shared_resilience.bulkhead import AsyncBulkhead, Bulkhead
from shared_resilience.bulkhead_config import BulkheadConfig
from shared_resilience.circuit import CircuitState
from shared_resilience.circuit_breaker import AsyncCircuitBreaker, CircuitBreaker
from shared_resilience.circuit_config import CircuitBreakerConfig
from shared_resilience.claim import Claim, current_claim
from shared_resilience.codecs import Codec
from shared_resilience.deadline import Deadline, deadline, deadline_from, deadline_headers, remaining
from shared_resilience.decision import Decision
from shared_resilience.decorator import Resilient, get_resilience_service, resilient
from shared_resilience.diagnosis import Diagnosis, Finding
from shared_resilience.errors import (
    BulkheadFullError,
    CircuitBreakerOpenError,
    DeadlineExceeded,
    EncodingError,
    FallbackExhaustedError,
    IdempotencyConflictError,
    RateLimitExceeded,
    ResilienceError,
    RetryableError,
    RetryBudgetExhaustedError,
    StoreConfigurationError,
    StoreUnavailableError,
)
from shared_resilience.events import Event
from shared_resilience.fallback import FallbackResult
from shared_resilience.fallback_chain import AsyncFallbackChain, FallbackChain
from shared_resilience.fallback_config import FallbackConfig, FallbackLevel
from shared_resilience.fleet import Worker
from shared_resilience.health import Health, HealthCheckResult
from shared_resilience.health_checker import AsyncHealthChecker, HealthChecker
from shared_resilience.health_config import HealthCheckConfig, HealthCheckType
from shared_resilience.idempotency import AsyncIdempotency, Idempotency
from shared_resilience.idempotency_config import IdempotencyConfig
from shared_resilience.leaky_bucket import LeakyBucket
from shared_resilience.permit import Permit
from shared_resilience.permits import AsyncPermits, Permits
from shared_resilience.policy import AsyncPolicy, Policy
from shared_resilience.priority import PriorityLevel
from shared_resilience.rate_limiter import AsyncRateLimiter, RateLimiter
from shared_resilience.retry_config import Jitter, RetryConfig, RetryStrategy
from shared_resilience.retry_manager import AsyncRetryBudget, AsyncRetryManager, RetryBudget, RetryManager
from shared_resilience.service import AsyncResilienceService, ResilienceService
from shared_resilience.sliding_window import SlidingWindow
from shared_resilience.timeout_config import TimeoutConfig
from shared_resilience.token_bucket import TokenBucket
from shared_resilience.version import VERSION

__version__ = VERSION

__all__ = [
    "AdaptiveTimeout",
    "AsyncAdaptiveTimeout",
    "AsyncBulkhead",
    "AsyncCircuitBreaker",
    "AsyncFallbackChain",
    "AsyncHealthChecker",
    "AsyncIdempotency",
    "AsyncPermits",
    "AsyncPolicy",
    "AsyncRateLimiter",
    "AsyncResilienceService",
    "AsyncRetryBudget",
    "AsyncRetryManager",
    "Bulkhead",
    "BulkheadConfig",
    "BulkheadFullError",
    "CircuitBreaker",
    "CircuitBreakerConfig",
    "CircuitBreakerOpenError",
    "CircuitState",
    "Claim",
    "Codec",
    "Deadline",
    "DeadlineExceeded",
    "Decision",
    "Diagnosis",
    "EncodingError",
    "Event",
    "FallbackChain",
    "FallbackConfig",
    "FallbackExhaustedError",
    "FallbackLevel",
    "FallbackResult",
    "Finding",
    "Health",
    "HealthCheckConfig",
    "HealthCheckResult",
    "HealthCheckType",
    "HealthChecker",
    "Idempotency",
    "IdempotencyConfig",
    "IdempotencyConflictError",
    "Jitter",
    "LeakyBucket",
    "Permit",
    "Permits",
    "Policy",
    "PriorityLevel",
    "RateLimitExceeded",
    "RateLimiter",
    "ResilienceError",
    "ResilienceService",
    "Resilient",
    "RetryBudget",
    "RetryBudgetExhaustedError",
    "RetryConfig",
    "RetryManager",
    "RetryStrategy",
    "RetryableError",
    "SlidingWindow",
    "StoreConfigurationError",
    "StoreUnavailableError",
    "TimeoutConfig",
    "Timeouts",
    "TokenBucket",
    "Worker",
    "current_claim",
    "deadline",
    "deadline_from",
    "deadline_headers",
    "get_resilience_service",
    "remaining",
    "resilient",
]
