--- @include "limits"

local max_delay = argument("longest delay", ARGV[3], -1)
local call = read_call(true)
call.held_back = argument("held back", ARGV[4], 0)
if problem then
  return problem
end

local keeper, wait, delay = longest_wait(call, call.cost, max_delay)
for index = 1, #call.limits do
  local limit = call.limits[index]
  if call.paused == 0 and (wait == 0 or limit.rebased) then
    limit.kind.take(limit, wait == 0 and call.cost or 0)
  end
end
return reply_of(call, keeper, wait, delay)
