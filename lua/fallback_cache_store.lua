-- Keeps last good values, for when nobody can be asked.
-- Twin: shared_resilience.fallback_cache.store
--
-- KEYS     hashes of one resource: codec, value, stored_us
-- ARGV[1]  for how many microseconds they are kept, >= 1
-- ARGV[2]  codec
-- ARGV     then the value of each
-- ARGV[#]  now_us, "" for the server's clock
--
-- Reply: { 1 }
--- @include "arguments"
--- @include "clock"

local ttl = argument("time to live", ARGV[1], 1)
if problem then
  return problem
end

local now = to_text(read_clock(ARGV[#ARGV]))
for index, key in ipairs(KEYS) do
  redis.call("HSET", key, "codec", ARGV[2], "value", ARGV[index + 2], "stored_us", now)
  redis.call("PEXPIRE", key, to_ttl(ttl))
end
return { 1 }
