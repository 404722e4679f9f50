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
--- @include "token_bucket"
--- @include "limits"

local most, back = argument("most", ARGV[3], 1), argument("back", ARGV[4], 0)
local call = read_call(true)
if problem then
  return problem
end

local limits = call.limits
for index = 1, #limits do
  token_bucket.add(limits[index], back)
end
local keeper, wait, delay = longest_wait(call, call.cost, -1)
local taken = wait == 0 and math.max(call.cost, most) or 0
for index = 1, #limits do
  taken = math.min(taken, math.max(call.cost, limits[index].remaining))
end
for index = 1, #limits do
  if taken + back > 0 or limits[index].rebased then
    token_bucket.take(limits[index], taken)
  end
end
local reply = reply_of(call, keeper, wait, delay)
reply[#reply + 1] = taken
return reply
