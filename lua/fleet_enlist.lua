-- Once a second and process: notes this worker among those that are alive, and what there is to know of it.
-- Twin: shared_resilience.fleet.enlist
--
-- KEYS[1]  sorted set of the fleet's workers by last sight, in microseconds
-- KEYS[2]  hash of what is known of them: worker.host, worker.pid, worker.version and worker.health
-- ARGV[1]  horizon in microseconds after which a silent worker is dropped, >= 1
-- ARGV[2]  worker id
-- ARGV[3]  host, process id, version and health, each an argument
-- ARGV[#]  now_us, "" for the server's clock
--
-- Reply: { live workers }
--- @include "arguments"
--- @include "clock"
--- @include "roster"

local FIELDS, DAY_MS = { "host", "pid", "version", "health" }, "86400000"
local horizon, worker = argument("horizon", ARGV[1], 1), ARGV[2]
if problem then
  return problem
end
local now = read_clock(ARGV[#ARGV])

local alive = sight(KEYS[1], now, horizon, ARGV, 2, 2)
for index, field in ipairs(FIELDS) do
  redis.call("HSET", KEYS[2], worker .. "." .. field, ARGV[2 + index])
end
redis.call("PEXPIRE", KEYS[2], DAY_MS)
-- The dead are forgotten as soon as they are as many as the living, which costs each call next to nothing.
if redis.call("HLEN", KEYS[2]) > #FIELDS * (2 * alive + 16) then
  for _, field in ipairs(redis.call("HKEYS", KEYS[2])) do
    if not redis.call("ZSCORE", KEYS[1], string.match(field, "^(.*)%.") or "") then
      redis.call("HDEL", KEYS[2], field)
    end
  end
end
return { alive }
