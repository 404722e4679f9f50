-- Takes `cost` from every limit of a resource and a slot of its bulkhead, all or nothing; else a place in the queue,
-- which charges nothing. What a limit refuses does not wait here: it comes back with its place when the limit lets it.
-- Twin: shared_resilience.permit_commands.enter
--
-- KEYS[1]  hash of the resource's overrides
-- KEYS     then the state of each limit, then the four keys of the bulkhead (see lib/queue.lua)
-- ARGV     as rate_limiter.lua up to the limits, then as bulkhead_enter.lua
-- ARGV[#]  now_us, "" for the server's clock
--
-- Reply: as rate_limiter.lua, then as bulkhead_enter.lua, whose state may also be "limited"
--- @include "free_slot"
--- @include "usual"

-- First what is usual, as in token_bucket.lua and bulkhead_enter.lua.
do
  local cost, now = check_usual()
  local slots, asked = #KEYS - 3, #ARGV - 8
  local inside = cost and look_for_slot(slots, asked)
  if inside then
    local reply = { 1, 0, 0, LARGEST, 0, 0, 0, now, "", "inside", 0, 0, inside + 1, "" }
    if take_usual(2, slots - 1, cost, now, reply) then
      reply[12] = hold_slot(KEYS[slots], KEYS[slots + 3], ARGV[asked], now)
      return reply
    end
  end
end

-- Everything else.
--- @include "enter"
--- @include "leaky_bucket"
--- @include "limits"
--- @include "sliding_window"
--- @include "token_bucket"

local call = read_call(true, 4)
call.held_back = argument("held back", ARGV[4], 0)
local slots = read_slots(#KEYS - 3, call.now)
local it = check_slots(slots, call.overrides, #ARGV - 8)
if problem then
  return problem
end

local keeper, wait, delay = longest_wait(call, call.cost, -1)
local passes = wait == 0 and it.fits
for index = 1, #call.limits do
  local limit = call.limits[index]
  if call.paused == 0 and (passes or limit.rebased) then
    limit.kind.take(limit, passes and call.cost or 0)
  end
end
local reply = reply_of(call, keeper, wait, delay)
if wait == 0 then
  reply[10], reply[11], reply[12], reply[13], reply[14] = enter(slots, it)
else
  local next = it.place and leave_queue(slots, it.token) or ""
  local place = it.place or next_place(slots, it.priority)
  reply[10], reply[11], reply[12], reply[13], reply[14] = "limited", place, 0, it.inside, next
end
return reply
