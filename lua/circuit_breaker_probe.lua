-- Asks for a probe: the right to one call while the circuit is half-open, as a lease. An open circuit whose time has
-- come becomes half-open.
-- Twin: shared_resilience.circuit.probe
--
-- KEYS[1]  hash of the resource's overrides
-- KEYS[2]  hash of the circuit
-- ARGV     the 13 numbers of the configuration (see lib/circuit.lua), then
-- ARGV[14] token of the probe, unlike any other
-- ARGV[15] now_us, "" for the server's clock
--
-- Reply: the view of the circuit (see lib/circuit.lua) after 1 if the probe was lent, else 0
--- @include "circuit"
--- @include "clock"

local overrides = read_overrides(KEYS[1])
local numbers = circuit.numbers(overrides)
if problem then
  return problem
end
local now = read_clock(ARGV[15])

local it = circuit.read(KEYS[2], now, numbers)
if it.state == "open" and it.mode == "" and it.retry_at <= now then
  circuit.follow(it, "due")
end
local lent = circuit.lend(it, ARGV[14])
circuit.save(it)
return circuit.reply(it, overrides, lent)
