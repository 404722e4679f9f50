-- Takes `cost` from every limit of a resource, all or nothing; a refusal changes nothing and says when to come back.
-- Twin: shared_resilience.limits.take
--
-- KEYS[1]  hash of the resource's overrides
-- KEYS     then the state of each limit
-- ARGV[1]  cost, >= 1
-- ARGV[2]  share: into how many equal parts the limits are divided, >= 1; 1 unless Redis is away
-- ARGV[3]  longest delay in microseconds that the caller would wait after entering a leaky bucket, -1: any
-- ARGV     then kind, label and three numbers for each limit (see lib/limits.lua)
-- ARGV[#]  now_us, "" for the server's clock
--
-- Reply: { allowed 0 | 1, number of the limit that the following speaks of (0: the resource is paused), its limit,
--          remaining, microseconds until the call would pass (0 when allowed, -1: never), microseconds until the limit
--          is as if unused, microseconds before the call could go on at the earliest, time of the decision in
--          microseconds, the fields of overrides that were ignored, separated by spaces }
--          Of the tightest limit when allowed, of the one that refuses longest when not.
--- @include "clock"
--- @include "limits"

local problem = refuse_arguments(4) or refuse("longest delay", ARGV[3], -1)
if problem then
  return problem
end
local cost, share, max_delay = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local now = read_clock(ARGV[#ARGV])

overrides.read(KEYS[1])
local limits = check_limits(now, share, 4)
local left = overrides.paused(KEYS[1], now, true)
if left > 0 then
  return reply_paused(limits, left, now)
end
local keeper, wait = longest_wait(limits, cost, max_delay)
local delay = longest_delay(limits)
for _, limit in ipairs(limits) do
  if wait == 0 then
    limit.kind.take(limit, cost)
  elseif limit.rebased then
    limit.kind.write(limit)
  end
end
return reply_of(limits, keeper, wait, delay, now)
