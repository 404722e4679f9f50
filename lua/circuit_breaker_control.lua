-- The operator's word for the whole fleet: forces a mode, or resets the circuit. What was seen or lent before is
-- void.
-- Twin: shared_resilience.circuit.control
--
-- KEYS[1]  hash of the resource's overrides
-- KEYS[2]  hash of the circuit
-- ARGV     the 13 numbers of the configuration (see lib/circuit.lua), then
-- ARGV[14] mode: "forced_open", "forced_closed", "metrics_only", or "" to reset
-- ARGV[15] now_us, "" for the server's clock
--
-- Reply: the view of the circuit (see lib/circuit.lua) after 1
--- @include "circuit"
--- @include "clock"

local overrides = read_overrides(KEYS[1])
local numbers = circuit.numbers(overrides)
local mode = ARGV[14]
if mode ~= "" and not FORCED[mode] then
  return redis.error_reply("ERR no such mode")
end
if problem then
  return problem
end
local now = read_clock(ARGV[15])

local it = circuit.read(KEYS[2], now, numbers)
circuit.force(it, FORCED[mode] or "closed", mode)
circuit.save(it)
return circuit.reply(it, overrides, 1)
