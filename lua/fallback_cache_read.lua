-- Looks for a last good value.
-- Twin: shared_resilience.fallback_cache.read
--
-- KEYS[1]  hash: codec, value, stored_us
-- ARGV[1]  codec; what another has written is not found
-- ARGV[2]  how many microseconds old it may be, >= 0
-- ARGV[3]  now_us, "" for the server's clock
--
-- Reply: { 1 if it was found, else 0, microseconds since it was stored, value }
--- @include "arguments"
--- @include "clock"

local oldest = argument("age", ARGV[2], 0)
if problem then
  return problem
end

local stored = redis.call("HMGET", KEYS[1], "codec", "value", "stored_us")
local stored_us = to_integer(stored[3])
if stored[1] ~= ARGV[1] or not stored[2] or not stored_us then
  return { 0, 0, "" }
end
local age = math.max(0, read_clock(ARGV[3]) - stored_us)
if age > oldest then
  return { 0, 0, "" }
end
return { 1, age, stored[2] }
