-- Says what taking `cost` would answer, and changes nothing.
-- Twin: shared_resilience.limits.peek
--
-- KEYS, ARGV and reply as rate_limiter.lua
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
local left = overrides.paused(KEYS[1], now, false)
if left > 0 then
  return reply_paused(limits, left, now)
end
local keeper, wait = longest_wait(limits, cost, max_delay)
return reply_of(limits, keeper, wait, longest_delay(limits), now)
