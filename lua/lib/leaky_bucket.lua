--- @include "token_bucket"

-- Leaky bucket as a queue: drops fall out at a steady rate; a call is admitted while there is room for its drops, and
-- goes on when all that lay before it has fallen. It is the mirror image of a token bucket: the room is the tokens, and
-- the delay is the time until the room before it would have been whole.
local leaky_bucket = { wait = token_bucket.wait }
KINDS.leaky_bucket = leaky_bucket

-- Reads the bucket at `key`: whole drops of capacity, and the rate.
function leaky_bucket.check(key, now, capacity, refill, per, share)
  local stored = redis.call("HMGET", key, "microlevel", "time_us")
  local level, time = to_integer(stored[1]), to_integer(stored[2])
  capacity = math.max(1, math.floor(capacity * MILLION / share))
  if not (level and time) then
    level, time = 0, now
  end
  local bucket = token_bucket.at(key, now, capacity - level, time, capacity, refill, per * share, share)
  bucket.delay = bucket.reset_after
  return bucket
end

function leaky_bucket.take(bucket, cost)
  token_bucket.add(bucket, -cost)
  store_bucket(bucket.key, "microlevel", bucket.capacity - bucket.tokens, bucket.time, bucket.reset_after)
end

function leaky_bucket.give(bucket, cost)
  leaky_bucket.take(bucket, -cost)
end
