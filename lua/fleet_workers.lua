-- Who is alive in the fleet, the last that was seen first.
-- Twin: shared_resilience.fleet.workers
--
-- KEYS[1]  sorted set of the fleet's workers by last sight, in microseconds
-- KEYS[2]  hash of what is known of them: worker.host, worker.pid, worker.version and worker.health
-- ARGV[1]  now_us, "" for the server's clock
--
-- Reply: { worker id, microseconds since it was seen, host, process id, version, health, for each worker }
--- @include "clock"
--- @include "integers"

local now, reply = read_clock(ARGV[1]), {}
local seen = redis.call("ZREVRANGE", KEYS[1], 0, -1, "WITHSCORES")
for index = 1, #seen, 2 do
  local worker, time = seen[index], to_integer(seen[index + 1]) or now
  local known =
    redis.call("HMGET", KEYS[2], worker .. ".host", worker .. ".pid", worker .. ".version", worker .. ".health")
  reply[#reply + 1], reply[#reply + 2] = worker, math.max(0, now - time)
  for field = 1, 4 do
    reply[#reply + 1] = known[field] or ""
  end
end
return reply
