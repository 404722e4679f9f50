-- Takes `cost` from limits that are all token buckets, all or nothing.
-- Twin: shared_resilience.limits.take
--
-- KEYS, ARGV and reply as rate_limiter.lua
--- @include "usual"

-- First what is usual.
do
  local cost, now = check_usual()
  if cost then
    local reply = { 1, 0, 0, LARGEST, 0, 0, 0, now, "" }
    if take_usual(2, #KEYS, cost, now, reply) then
      return reply
    end
  end
end

-- Everything else.
--- @include "token_bucket"
--- @include "take"
