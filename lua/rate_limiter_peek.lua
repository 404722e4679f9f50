-- Says what taking `cost` would answer, and changes nothing.
-- Twin: shared_resilience.limits.peek
--
-- KEYS, ARGV and reply as rate_limiter.lua
--- @include "clock"
--- @include "leaky_bucket"
--- @include "limits"
--- @include "sliding_window"
--- @include "token_bucket"

local cost, share = argument("cost", ARGV[1], 1), argument("share", ARGV[2], 1)
local max_delay = argument("longest delay", ARGV[3], -1)
local now = read_clock(ARGV[#ARGV])

local overrides = read_overrides(KEYS[1])
local limits = check_limits(overrides, now, share, 4)
if problem then
  return problem
end
local left = overrides and overrides.paused(now, false) or 0
if left > 0 then
  return reply_of(limits, overrides, 0, left, 0, now)
end
local keeper, wait, delay = longest_wait(limits, cost, max_delay)
return reply_of(limits, overrides, keeper, wait, delay, now)
