-- Once a second and process, for each resource in use: this worker lives, these numbers are in force here, and this is
-- what it counted since the last time. Brings back the fleet's view.
-- Twin: shared_resilience.heartbeat.beat
--
-- KEYS[1]  sorted set of the resource's workers by last sight, in microseconds
-- KEYS[2]  hash of the numbers in force
-- KEYS[3]  hash of the fleet's counters
-- ARGV[1]  worker id
-- ARGV[2]  horizon in microseconds after which a silent worker no longer counts, >= 1
-- ARGV[3]  number of configuration fields
-- ARGV     then field, value for each of them; then field, increment for each counter
-- ARGV[#]  now_us, "" for the server's clock
--
-- Reply: { live workers, field, value, field, value, ... } with all counters of the fleet
--- @include "clock"
--- @include "roster"

local DAY_MS = "86400000"
local problem = refuse("horizon", ARGV[2], 1) or refuse("number of fields", ARGV[3], 0)
if problem then
  return problem
end
local last_field = 3 + 2 * tonumber(ARGV[3])
local now = read_clock(ARGV[#ARGV])

local alive = sight(KEYS[1], now, tonumber(ARGV[2]), ARGV, 1, 1)
for index = 4, last_field, 2 do
  redis.call("HSET", KEYS[2], ARGV[index], ARGV[index + 1])
end
for index = last_field + 1, #ARGV - 1, 2 do
  redis.call("HINCRBY", KEYS[3], ARGV[index], ARGV[index + 1])
end
redis.call("PEXPIRE", KEYS[2], DAY_MS)
redis.call("PEXPIRE", KEYS[3], DAY_MS)

local reply = { alive }
for _, item in ipairs(redis.call("HGETALL", KEYS[3])) do
  reply[#reply + 1] = item
end
return reply
