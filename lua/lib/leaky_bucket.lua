--- @include "token_bucket"

-- Leaky bucket as a queue: drops fall out at a steady rate; a call is admitted while there is room for its drops, and
-- goes on when all that lay before it has fallen. It is the mirror image of a token bucket: the room is the tokens, and
-- the delay is the time until the room before it would have been whole.
local leaky_bucket = {
  remaining = token_bucket.remaining, size = token_bucket.size, wait = token_bucket.wait,
  reset_after = token_bucket.reset_after,
}

-- Reads the bucket at `key`: whole drops of capacity, the rate, and into how many equal shares both are divided.
function leaky_bucket.check(key, now, capacity, refill, per, share)
  local stored = redis.call("HMGET", key, "microlevel", "time_us")
  local level, time = to_integer(stored[1]), to_integer(stored[2])
  capacity = math.max(1, math.floor(capacity * MILLION / share))
  if not (level and time) then
    level, time = 0, now
  end
  local bucket = token_bucket.at(now, capacity - level, time, capacity, refill, per * share)
  bucket.key, bucket.divided = key, share > 1
  bucket.before = token_bucket.until_it_holds(bucket, capacity)
  return bucket
end

-- Microseconds until the first of the next drops falls.
function leaky_bucket.delay(bucket)
  return bucket.before
end

function leaky_bucket.write(bucket)
  local level = to_text(bucket.capacity - bucket.tokens)
  redis.call("HSET", bucket.key, "microlevel", level, "time_us", to_text(bucket.time))
  redis.call("PEXPIRE", bucket.key, to_ttl(leaky_bucket.reset_after(bucket)))
end

function leaky_bucket.take(bucket, cost)
  token_bucket.add(bucket, -cost)
  leaky_bucket.write(bucket)
end

function leaky_bucket.give(bucket, cost)
  token_bucket.add(bucket, cost)
  leaky_bucket.write(bucket)
end
