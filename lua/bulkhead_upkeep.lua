-- Keeps up what a process has in a bulkhead: renews leases, gives signs of life for waiters, drops what was given up.
-- Tells the first waiter if there is a slot for it, should a wake-up have been lost.
-- Twin: shared_resilience.slots.upkeep
--
-- KEYS     as bulkhead_enter.lua
-- ARGV[1]  slots, >= 1
-- ARGV[2]  share, as bulkhead_enter.lua
-- ARGV[3]  slots elsewhere, as bulkhead_enter.lua
-- ARGV     then pairs of a verb and a token. "renew": prolongs a lease that is still held; "adopt": takes a slot, even
--          if none is free, for a call that was let in while Redis was away; "wait": a sign of life of a waiter;
--          "drop": gives back a slot or a place
-- ARGV[#]  now_us, "" for the server's clock
--
-- Reply: { how many are inside, how many wait and are alive, token of the waiter that was told or "", then the tokens
--          that were not found where they were to be renewed or waiting }
--- @include "slots"

local slots, overrides = read_slots(2, read_clock(ARGV[#ARGV])), read_overrides(KEYS[1])
local most, share = argument("slots", ARGV[1], 1), argument("share of slots", ARGV[2], 1)
local elsewhere = argument("slots elsewhere", ARGV[3], 0)
if problem then
  return problem
end
set_size(slots, overrides, most, share, elsewhere)

local reply = { 0, 0, "" }
for index = 4, #ARGV - 2, 2 do
  local verb, token = ARGV[index], ARGV[index + 1]
  if verb == "drop" then
    redis.call("ZREM", slots.holders, token)
    leave_queue(slots, token)
  elseif verb == "wait" and redis.call("ZSCORE", slots.queue, token) then
    redis.call("ZADD", slots.waiters, to_text(slots.now), token)
  elseif verb == "adopt" or verb == "renew" and redis.call("ZSCORE", slots.holders, token) then
    redis.call("ZADD", slots.holders, to_text(slots.now + lease_of(token)), token)
    if verb == "adopt" then
      drop_waiter(slots, token) -- it waited here before Redis was away
    end
  else
    reply[#reply + 1] = token
  end
end
redis.call("PEXPIRE", slots.holders, DAY_MS)
redis.call("PEXPIRE", slots.queue, MINUTE_MS)
redis.call("PEXPIRE", slots.waiters, MINUTE_MS)
if count_inside(slots, slots.size) < slots.size then
  reply[3] = wake_first(slots)
end
reply[1] = redis.call("ZCOUNT", slots.holders, "(" .. to_text(slots.now), "+inf")
reply[2] = redis.call("ZCOUNT", slots.waiters, "(" .. to_text(slots.now - ALIVE_FOR), to_text(slots.now))
return reply
