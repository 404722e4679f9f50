-- The evidence path: what a worker has seen since the last time goes in, the fleet's view comes out.
-- Twin: shared_resilience.evidence.report
--
-- KEYS[1]  hash of the resource's overrides
-- KEYS[2]  hash of the circuit
-- KEYS[3]  sorted set of the resource's live workers; this one enters where a quorum asks for them, for a heartbeat may
--          not have told of it yet
-- ARGV     the 13 numbers of the configuration (see lib/circuit.lua), then
-- ARGV[14] worker id
-- ARGV[15] generation under which it was seen
-- ARGV[16] calls
-- ARGV[17] failures among them
-- ARGV[18] slow calls among them
-- ARGV[19] random number from 0 to 1000000, for the jitter of the open time
-- ARGV[20] now_us, "" for the server's clock
--
-- Reply: the view of the circuit (see lib/circuit.lua) after 1 if the evidence was counted, 0 if it was of another
--        generation or the circuit is not counting
--- @include "circuit"
--- @include "clock"

local LIVE_FOR_MS = "5000"
local overrides = read_overrides(KEYS[1])
local numbers = circuit.numbers(overrides)
local generation, draw = argument("generation", ARGV[15], 0), argument("draw", ARGV[19], 0)
local calls, failures = argument("calls", ARGV[16], 0), argument("failures", ARGV[17], 0)
local counts = { calls = calls, failures = failures, slow = argument("slow calls", ARGV[18], 0) }
if problem then
  return problem
end
local now = read_clock(ARGV[20])

if numbers.min_workers > 1 and not redis.call("ZSCORE", KEYS[3], ARGV[14]) then
  redis.call("ZADD", KEYS[3], to_text(now), ARGV[14])
  redis.call("PEXPIRE", KEYS[3], LIVE_FOR_MS)
end
local it = circuit.read(KEYS[2], now, numbers)
local counting = it.state == "closed" and it.mode ~= "forced_closed"
local counted = counting and generation == it.generation
if counted and counts.calls > 0 then
  circuit.add(it, ARGV[14], counts)
  if circuit.is_tripped(it, KEYS[3]) then
    circuit.open(it, "tripped", draw)
  end
end
circuit.save(it)
return circuit.reply(it, overrides, counted and 1 or 0)
