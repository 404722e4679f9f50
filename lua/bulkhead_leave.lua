-- Gives a slot back, or a place in the queue, and tells the first waiter. Who has neither changes nothing.
-- Twin: shared_resilience.slots.leave
--
-- KEYS[1]  holders of slots (see lib/queue.lua)
-- KEYS[2]  queue
-- KEYS[3]  waiters
-- ARGV[1]  token
-- ARGV[2]  now_us, "" for the server's clock
--
-- Reply: { 1 if it had a slot, else 0, token of the waiter that was told that it may be its turn, or "" }

-- First what is usual: nobody waits.
local left = redis.call("ZREM", KEYS[1], ARGV[1])
if redis.call("EXISTS", KEYS[2]) == 0 then
  return { left, "" }
end

-- Everything else.
--- @include "queue"

local slots = read_slots(1, read_clock(ARGV[2]))
return { left, left == 1 and wake_first(slots) or leave_queue(slots, ARGV[1]) }
