-- Says what taking `cost` would answer, and changes nothing.
-- Twin: shared_resilience.limits.peek
--
-- KEYS, ARGV and reply as rate_limiter.lua
--- @include "leaky_bucket"
--- @include "limits"
--- @include "sliding_window"
--- @include "token_bucket"

local max_delay = argument("longest delay", ARGV[3], -1)
local call = read_call(false)
call.held_back = argument("held back", ARGV[4], 0)
if problem then
  return problem
end

return reply_of(call, longest_wait(call, call.cost, max_delay))
