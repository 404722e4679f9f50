-- Once a second and process, for each resource in use: this worker lives, these numbers are in force here, and this is
-- what it counted since the last time. Brings back the fleet's view.
-- Twin: shared_resilience.heartbeat.beat
--
-- KEYS[1]  sorted set of the resource's workers by last sight, in microseconds
-- KEYS[2]  hash of the numbers in force
-- KEYS[3]  hash of the fleet's counters
-- KEYS[4]  hash of the resource's overrides
-- ARGV[1]  worker id
-- ARGV[2]  horizon in microseconds after which a silent worker no longer counts, >= 1
-- ARGV[3]  number of configuration fields
-- ARGV     then field, value for each of them; then field, increment for each counter
-- ARGV[#]  now_us, "" for the server's clock
--
-- Reply: { live workers, microseconds for which the resource is paused, number of counters of the fleet,
--          then field, value for each counter; then field, value for each override }
--- @include "arguments"
--- @include "clock"
--- @include "count"
--- @include "overrides"
--- @include "roster"

local DAY_MS = "86400000"
local horizon, fields = argument("horizon", ARGV[2], 1), argument("number of fields", ARGV[3], 0)
local last_field = 3 + 2 * (fields or 0)
if last_field > #ARGV - 1 then
  problem = problem or redis.error_reply("ERR there are not so many fields")
end
local increments = {}
for index = last_field + 1, #ARGV - 2, 2 do
  increments[index] = to_text(argument("increment", ARGV[index + 1], 0) or 0)
end
if problem then
  return problem
end
local now = read_clock(ARGV[#ARGV])

local alive = sight(KEYS[1], now, horizon, ARGV, 1, 1)
for index = 4, last_field, 2 do
  redis.call("HSET", KEYS[2], ARGV[index], ARGV[index + 1])
end
redis.call("PEXPIRE", KEYS[2], DAY_MS)
for index = last_field + 1, #ARGV - 2, 2 do
  add_to_count(KEYS[3], ARGV[index], increments[index])
end
redis.call("PEXPIRE", KEYS[3], DAY_MS)

local overrides = read_overrides(KEYS[4]) or { fields = {}, paused = function() return 0 end }
local counters = redis.call("HGETALL", KEYS[3])
local reply = { alive, overrides.paused(now, true), #counters / 2, unpack(counters) }
for field, value in pairs(overrides.fields) do
  reply[#reply + 1] = field
  reply[#reply + 1] = value
end
return reply
