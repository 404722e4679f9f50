-- Takes tokens for a process that serves them from its memory: at least `cost`, at most `most`, all or nothing. First
-- gives back what is left of the lease before.
-- Twin: shared_resilience.limits.lease
--
-- KEYS     as rate_limiter.lua, of token buckets alone
-- ARGV[1]  cost of the call at hand, >= 1
-- ARGV[2]  share, as rate_limiter.lua
-- ARGV[3]  most tokens to take, >= 1
-- ARGV[4]  tokens to give back, >= 0
-- ARGV     then kind, label and three numbers for each limit (see lib/limits.lua)
-- ARGV[#]  now_us, "" for the server's clock
--
-- Reply: as rate_limiter.lua, then the tokens that were taken, 0 when refused
--- @include "clock"
--- @include "token_bucket"
--- @include "limits"

local cost, share = argument("cost", ARGV[1], 1), argument("share", ARGV[2], 1)
local most, back = argument("most", ARGV[3], 1), argument("back", ARGV[4], 0)
local now = read_clock(ARGV[#ARGV])

local overrides = read_overrides(KEYS[1])
local limits = check_limits(overrides, now, share, 5)
if problem then
  return problem
end
for index = 1, #limits do
  token_bucket.add(limits[index], back)
end
local left = overrides and overrides.paused(now, true) or 0
local keeper, wait, delay = longest_wait(limits, cost, -1)
local taken = left == 0 and wait == 0 and math.max(cost, most) or 0
for index = 1, #limits do
  taken = math.min(taken, math.max(cost, limits[index].remaining))
end
for index = 1, #limits do
  if taken + back > 0 or limits[index].rebased then
    token_bucket.take(limits[index], taken)
  end
end
local reply = reply_of(limits, overrides, left > 0 and 0 or keeper, left > 0 and left or wait, delay, now)
reply[#reply + 1] = taken
return reply
