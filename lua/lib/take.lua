--- @include "clock"
--- @include "limits"

local cost, share = argument("cost", ARGV[1], 1), argument("share", ARGV[2], 1)
local max_delay = argument("longest delay", ARGV[3], -1)
local now = read_clock(ARGV[#ARGV])

local overrides = read_overrides(KEYS[1])
local limits = check_limits(overrides, now, share, 4)
if problem then
  return problem
end
local left = overrides and overrides.paused(now, true) or 0
if left > 0 then
  return reply_of(limits, overrides, 0, left, 0, now)
end
local keeper, wait, delay = longest_wait(limits, cost, max_delay)
for index = 1, #limits do
  local limit = limits[index]
  if wait == 0 or limit.rebased then
    limit.kind.take(limit, wait == 0 and cost or 0)
  end
end
return reply_of(limits, overrides, keeper, wait, delay, now)
