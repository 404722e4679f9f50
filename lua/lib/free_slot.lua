--- @include "clock"
--- @include "integers"
--- @include "lease"

local function next_fencing(key, now)
  local stored = to_integer(redis.call("SET", key, to_text(now), "PX", DAY_MS, "GET"))
  if stored and stored >= now and stored < LARGEST then
    now = stored + 1
    redis.call("SET", key, to_text(now), "PX", DAY_MS)
  end
  return now
end

-- Gives `token` a slot among `holders`. Returns the number that `fencing` keeps.
local function hold_slot(holders, fencing, token, now)
  redis.call("ZADD", holders, to_text(now + lease_of(token)), token)
  redis.call("PEXPIRE", holders, DAY_MS)
  return next_fencing(fencing, now)
end

-- What is usual: a newcomer, told of in ARGV[at] and the following (see lib/enter.lua), who finds a slot, and nobody
-- before it in the queue; the four keys are from KEYS[first] on. How many are inside, nil if it is not so.
local function look_for_slot(first, at)
  local priority, most, longest = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  local usual = ARGV[at + 2] == "" and ARGV[at + 5] == "0" and ARGV[at + 6] == "1" and ARGV[at + 7] == "0"
    and priority and most and longest and math.min(priority, most) >= 1 and longest >= 0
    and math.max(priority, most, longest) <= LARGEST and priority % 1 + most % 1 + longest % 1 == 0
  if usual and redis.call("EXISTS", KEYS[first + 1]) == 0 then
    local inside = redis.call("ZCARD", KEYS[first])
    return inside < most and inside or nil
  end
end
