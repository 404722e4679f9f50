--- @include "integers"

-- Token bucket: tokens come back steadily up to the capacity; a call takes its cost or is refused.
-- All amounts in here are millionths of a token. The rate is `refill` millionths every `per` microseconds, with
-- refill * per <= 2^53, so that every sum below is an exact integer. Only whole periods are converted into stored
-- tokens; the rest of the time stays in the timestamp, so that no fraction of a token is ever lost. What has dripped
-- in since then counts for the decision all the same; a call that needs it leaves a few millionths of debt.
local token_bucket = {}

-- A bucket that held `tokens` at `time`, as it stands at `now`.
function token_bucket.at(now, tokens, time, capacity, refill, per)
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
  return {
    tokens = tokens, time = time, available = available, rebased = rebased,
    now = now, capacity = capacity, refill = refill, per = per,
  }
end

-- Reads the bucket at `key`: whole tokens of capacity, the rate, and into how many equal shares both are divided.
function token_bucket.check(key, now, capacity, refill, per, share)
  local stored = redis.call("HMGET", key, "microtokens", "time_us")
  local tokens, time = to_integer(stored[1]), to_integer(stored[2])
  capacity = math.max(1, math.floor(capacity * MILLION / share))
  if not (tokens and time) then
    tokens, time = capacity, now
  end
  local bucket = token_bucket.at(now, tokens, time, capacity, refill, per * share)
  bucket.key, bucket.divided = key, share > 1
  return bucket
end

-- Microseconds until `bucket` holds `goal`.
function token_bucket.until_it_holds(bucket, goal)
  local deficit = goal - bucket.tokens
  local periods = math.floor(deficit / bucket.refill)
  local rest = math.ceil((deficit - periods * bucket.refill) * bucket.per / bucket.refill)
  return to_wait(periods * bucket.per + rest - (bucket.now - bucket.time))
end

-- Microseconds until `cost` tokens are there, -1: never. A cost above a share waits for the whole share.
function token_bucket.wait(bucket, cost)
  local need = cost * MILLION
  if need > bucket.capacity then
    if not bucket.divided then
      return -1
    end
    need = bucket.capacity
  end
  return bucket.available >= need and 0 or token_bucket.until_it_holds(bucket, need)
end

function token_bucket.reset_after(bucket)
  return token_bucket.until_it_holds(bucket, bucket.capacity)
end

function token_bucket.remaining(bucket)
  return math.max(0, math.floor(bucket.available / MILLION))
end

function token_bucket.size(bucket)
  return math.floor(bucket.capacity / MILLION)
end

function token_bucket.delay()
  return 0
end

-- Adds `tokens`, which may be negative and leave debt; what would overflow is dropped.
function token_bucket.add(bucket, tokens)
  bucket.tokens, bucket.available = bucket.tokens + tokens * MILLION, bucket.available + tokens * MILLION
  if bucket.available >= bucket.capacity then
    bucket.tokens, bucket.available, bucket.time = bucket.capacity, bucket.capacity, bucket.now
  end
end

function token_bucket.write(bucket)
  redis.call("HSET", bucket.key, "microtokens", to_text(bucket.tokens), "time_us", to_text(bucket.time))
  redis.call("PEXPIRE", bucket.key, to_ttl(token_bucket.reset_after(bucket)))
end

function token_bucket.take(bucket, cost)
  token_bucket.add(bucket, -cost)
  token_bucket.write(bucket)
end

function token_bucket.give(bucket, cost)
  token_bucket.add(bucket, cost)
  token_bucket.write(bucket)
end
