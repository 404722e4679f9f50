--- @include "integers"

-- Token bucket: tokens come back steadily up to `capacity`; a call takes its cost or is refused.
-- All amounts are millionths of a token. The rate is `refill` millionths every `per` microseconds, with
-- refill * per <= 2^53, so that every sum below is an exact integer. Only whole periods are converted into stored
-- tokens; the rest of the time stays in the timestamp, so that no fraction of a token is ever lost. What has dripped
-- in since then counts for the decision all the same; a call that needs it leaves a few millionths of debt.
local token_bucket = {}

-- Reads the bucket at `key` as it stands at `now`.
function token_bucket.check(key, now, capacity, refill, per)
  local stored = redis.call("HMGET", key, "microtokens", "time_us")
  local tokens, time = to_integer(stored[1]), to_integer(stored[2])
  if not (tokens and time) then
    tokens, time = capacity, now
  end
  -- The server's clock went back: go on from here, which mints nothing and stalls nothing.
  local rebased = time > now
  if rebased then
    time = now
  end
  local available = capacity
  if now - time < math.ceil((capacity - tokens) / refill) * per then
    local periods = math.floor((now - time) / per)
    tokens, time = tokens + periods * refill, time + periods * per
    available = tokens + math.floor((now - time) * refill / per)
  end
  if available >= capacity then
    tokens, time, available = capacity, now, capacity
  end
  return { tokens = tokens, time = time, available = available, rebased = rebased }
end

-- Microseconds from `now` until `bucket` holds `goal`.
function token_bucket.wait(bucket, now, refill, per, goal)
  local deficit = goal - bucket.tokens
  local periods = math.floor(deficit / refill)
  local rest = math.ceil((deficit - periods * refill) * per / refill)
  return math.max(0, math.min(periods * per + rest - (now - bucket.time), LARGEST))
end

-- Writes `bucket` after `change` to its tokens; the key lives until the bucket would be full, at least a second.
function token_bucket.take(key, bucket, now, capacity, refill, per, change)
  bucket.tokens, bucket.available = bucket.tokens + change, bucket.available + change
  if bucket.available >= capacity then
    bucket.tokens, bucket.available, bucket.time = capacity, capacity, now
  end
  local ttl = math.max(1000, math.ceil(token_bucket.wait(bucket, now, refill, per, capacity) / 1000))
  redis.call("HSET", key, "microtokens", to_text(bucket.tokens), "time_us", to_text(bucket.time))
  redis.call("PEXPIRE", key, to_text(ttl))
end

-- The reply of every token bucket script: allowed, limit, remaining, retry after (-1: never), reset after.
function token_bucket.reply(bucket, now, capacity, refill, per, need, allowed)
  local retry_after = 0
  if not allowed then
    retry_after = need > capacity and -1 or token_bucket.wait(bucket, now, refill, per, need)
  end
  return {
    allowed and 1 or 0,
    math.floor(capacity / 1000000),
    math.max(0, math.floor(bucket.available / 1000000)),
    retry_after,
    token_bucket.wait(bucket, now, refill, per, capacity),
  }
end
