-- Once a second and process: notes members (this worker, or the names of the resources it uses) in a set of the fleet.
-- Twin: shared_resilience.heartbeat.enrol
--
-- KEYS[1]  sorted set of members by last sight, in microseconds
-- ARGV[1]  horizon in microseconds after which a silent member is dropped, >= 1
-- ARGV     then the members
-- ARGV[#]  now_us, "" for the server's clock
--
-- Reply: { members left }
--- @include "arguments"
--- @include "clock"
--- @include "roster"

local horizon = argument("horizon", ARGV[1], 1)
if problem then
  return problem
end
local now = read_clock(ARGV[#ARGV])

return { sight(KEYS[1], now, horizon, ARGV, 2, #ARGV - 1) }
