-- Settles what was taken against what was used: gives the rest back, or takes the excess even where there is no room,
-- which leaves debt.
-- Twin: shared_resilience.limits.settle
--
-- KEYS[1]  hash of the resource's overrides
-- KEYS     then the state of each limit
-- ARGV[1]  cost to take or to give back, >= 1
-- ARGV[2]  share, as rate_limiter.lua
-- ARGV[3]  "take" or "give"
-- ARGV[4]  time in microseconds since which it is taken, 0: unknown; a window gives back only what it still counts
-- ARGV     then kind, label and three numbers for each limit (see lib/limits.lua)
-- ARGV[#]  now_us, "" for the server's clock
--
-- Reply: as rate_limiter.lua, for a further call of cost 1
--- @include "leaky_bucket"
--- @include "limits"
--- @include "sliding_window"
--- @include "token_bucket"

local since = argument("since", ARGV[4], 0)
local call = read_call(false)
if problem then
  return problem
end

call.paused = 0 -- what was taken is settled all the same
for index = 1, #call.limits do
  local limit = call.limits[index]
  if ARGV[3] == "take" then
    limit.kind.take(limit, call.cost)
  else
    limit.kind.give(limit, call.cost, since > 0 and since or call.now)
  end
end
local keeper, wait = longest_wait(call, 1, -1)
return reply_of(call, keeper, wait, 0)
