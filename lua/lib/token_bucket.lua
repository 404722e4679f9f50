--- @include "bucket"
--- @include "kinds"

-- Token bucket: tokens come back steadily up to the capacity; a call takes its cost or is refused.
local token_bucket = {}
KINDS.token_bucket = token_bucket

-- Sets what follows from `tokens`, `time` and `available`.
function token_bucket.measure(bucket)
  bucket.remaining = math.max(0, math.floor(bucket.available / MILLION))
  bucket.reset_after =
    until_it_holds(bucket.capacity, bucket.tokens, bucket.time, bucket.now, bucket.refill, bucket.per)
end

-- A bucket that held `tokens` at `time`, as it stands at `now`; `share` tells whether it is a part of one.
function token_bucket.at(key, now, tokens, time, capacity, refill, per, share)
  local bucket = {
    key = key, now = now, rebased = time > now, capacity = capacity, refill = refill, per = per, divided = share > 1,
    size = math.floor(capacity / MILLION), delay = 0,
  }
  bucket.tokens, bucket.time, bucket.available = refilled(tokens, time, now, capacity, refill, per)
  token_bucket.measure(bucket)
  return bucket
end

-- Reads the bucket at `key`: whole tokens of capacity, and the rate.
function token_bucket.check(key, now, capacity, refill, per, share)
  local stored = redis.call("HMGET", key, "microtokens", "time_us")
  local tokens, time = to_integer(stored[1]), to_integer(stored[2])
  capacity = math.max(1, math.floor(capacity * MILLION / share))
  if not (tokens and time) then
    tokens, time = capacity, now
  end
  return token_bucket.at(key, now, tokens, time, capacity, refill, per * share, share)
end

-- A cost above a share waits for the whole share.
function token_bucket.wait(bucket, cost)
  local need = cost * MILLION
  if need > bucket.capacity then
    if not bucket.divided then
      return -1
    end
    need = bucket.capacity
  end
  return until_it_holds(need, bucket.tokens, bucket.time, bucket.now, bucket.refill, bucket.per)
end

-- Adds `tokens`, which may be negative and leave debt; what would overflow is dropped.
function token_bucket.add(bucket, tokens)
  bucket.tokens = math.max(bucket.tokens + tokens * MILLION, -LONGEST_WAIT)
  bucket.available = bucket.available + tokens * MILLION
  if bucket.available >= bucket.capacity then
    bucket.tokens, bucket.available, bucket.time = bucket.capacity, bucket.capacity, bucket.now
  end
  token_bucket.measure(bucket)
end

function token_bucket.take(bucket, cost)
  token_bucket.add(bucket, -cost)
  store_bucket(bucket.key, "microtokens", bucket.tokens, bucket.time, bucket.reset_after)
end

function token_bucket.give(bucket, cost)
  token_bucket.take(bucket, -cost)
end
