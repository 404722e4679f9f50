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
--- @include "clock"
--- @include "leaky_bucket"
--- @include "limits"
--- @include "sliding_window"
--- @include "token_bucket"

local cost, share = argument("cost", ARGV[1], 1), argument("share", ARGV[2], 1)
local since = argument("since", ARGV[4], 0)
local now = read_clock(ARGV[#ARGV])

local overrides = read_overrides(KEYS[1])
local limits = check_limits(overrides, now, share, 5)
if problem then
  return problem
end
for _, limit in ipairs(limits) do
  if ARGV[3] == "take" then
    limit.kind.take(limit, cost)
  else
    limit.kind.give(limit, cost, since > 0 and since or now)
  end
end
local keeper, wait = longest_wait(limits, 1, -1)
return reply_of(limits, overrides, keeper, wait, 0, now)
