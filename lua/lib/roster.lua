--- @include "integers"

-- A roster is a sorted set of members by the time at which they were last seen, in microseconds.
-- Notes list[first..last] as seen at `now`, drops whoever was not seen for `horizon` microseconds, and returns how many
-- remain. Sights later than `now` are from before the clock was set back; they are dropped and come back by themselves.
local function sight(key, now, horizon, list, first, last)
  local score = to_text(now)
  for index = first, last do
    redis.call("ZADD", key, score, list[index])
  end
  redis.call("ZREMRANGEBYSCORE", key, "-inf", "(" .. to_text(now - horizon))
  redis.call("ZREMRANGEBYSCORE", key, "(" .. score, "+inf")
  redis.call("PEXPIRE", key, to_text(math.max(1000, math.ceil(horizon / 1000))))
  return redis.call("ZCARD", key)
end
