-- Settles a probe: its call has succeeded, failed, or counts as nothing. A probe whose lease is over, or that was lent
-- in another generation, changes nothing. Who gives a probe back need not know its generation: the asking may have been
-- interrupted before the reply.
-- Twin: shared_resilience.circuit.settle
--
-- KEYS[1]  hash of the resource's overrides
-- KEYS[2]  hash of the circuit
-- ARGV     the 13 numbers of the configuration (see lib/circuit.lua), then
-- ARGV[14] worker id
-- ARGV[15] token of the probe
-- ARGV[16] generation in which it was lent; of a cancelled one any
-- ARGV[17] outcome: "success", "failure" or "cancelled"
-- ARGV[18] random number from 0 to 1000000, for the jitter of the open time
-- ARGV[19] now_us, "" for the server's clock
--
-- Reply: the view of the circuit (see lib/circuit.lua) after 1 if the outcome was counted, else 0
--- @include "circuit"
--- @include "clock"

local overrides = read_overrides(KEYS[1])
local numbers = circuit.numbers(overrides)
local generation, draw = argument("generation", ARGV[16], 0), argument("draw", ARGV[18], 0)
if problem then
  return problem
end
local worker, token, outcome = ARGV[14], ARGV[15], ARGV[17]
local now = read_clock(ARGV[19])

local it = circuit.read(KEYS[2], now, numbers)
local fenced = outcome == "cancelled" or generation == it.generation
local held = it.state == "half_open" and fenced and it.probes[token]
if held then
  circuit.take_back(it, token)
  if outcome == "failure" then
    it.seen, it.failing = { calls = 1, failures = 1, slow = 0 }, { worker }
    circuit.open(it, "failed", draw)
  elseif outcome == "success" then
    circuit.succeed(it)
  end
end
circuit.save(it)
return circuit.reply(it, overrides, held and 1 or 0)
