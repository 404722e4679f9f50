-- Stops a resource for the whole fleet for a while, or lets it go on. A longer pause that is there stays.
-- Twin: shared_resilience.limits.pause
--
-- KEYS[1]  hash of the resource's overrides
-- ARGV[1]  length of the pause in microseconds, 0: end the pause
-- ARGV[2]  now_us, "" for the server's clock
--
-- Reply: { microseconds for which the resource is paused now }
--- @include "arguments"
--- @include "clock"
--- @include "overrides"

local length, key = argument("length", ARGV[1], 0), KEYS[1]
if problem then
  return problem
end
local now = read_clock(ARGV[2])

if length == 0 then
  redis.call("HDEL", key, "paused_until_us", "paused_for_us")
end
local overrides = read_overrides(key)
local left = overrides and overrides.paused(now, true) or 0
if left < length then
  redis.call("HSET", key, "paused_until_us", to_text(now + length), "paused_for_us", to_text(length))
  left = length
end
return { left }
