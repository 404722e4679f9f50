--- @include "arguments"
--- @include "lease"
--- @include "overrides"
--- @include "queue"

local MINUTE_MS = "60000"

-- How many slots there are: `most`, or what overrides it, divided into `share` parts, less those that the same process
-- holds `elsewhere`.
local function set_size(slots, overrides, most, share, elsewhere)
  most = overrides and overrides.count("bulkhead.max_concurrent_calls") or most
  slots.size = math.max(1, math.floor(most / share)) - elsewhere
end

-- How many are inside. Only where they seem to be `enough` it is looked whose lease is over, and whose seems longer
-- than it can be, since the clock went back.
local function count_inside(slots, enough)
  local inside = redis.call("ZCARD", slots.holders)
  if inside < enough then
    return inside
  end
  redis.call("ZREMRANGEBYSCORE", slots.holders, "-inf", to_text(slots.now))
  local last = redis.call("ZREVRANGE", slots.holders, 0, 0, "WITHSCORES")
  while last[1] and tonumber(last[2]) > slots.now + lease_of(last[1]) do
    redis.call("ZADD", slots.holders, to_text(slots.now + lease_of(last[1])), last[1])
    last = redis.call("ZREVRANGE", slots.holders, 0, 0, "WITHSCORES")
  end
  return redis.call("ZCARD", slots.holders)
end
