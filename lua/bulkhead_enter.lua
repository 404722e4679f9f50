-- Takes a slot of a bulkhead, else a place in the queue before it. A newcomer never passes a living waiter of equal or
-- higher priority. Whoever waits comes back with its place when it is told, or when it thinks that it was forgotten.
-- Twin: shared_resilience.slots.enter
--
-- KEYS[1]  hash of the resource's overrides
-- KEYS[2]  holders of slots (see lib/queue.lua)
-- KEYS[3]  queue
-- KEYS[4]  waiters
-- KEYS[5]  fencing
-- ARGV[1]  token, which ends with a colon and the length of the lease in milliseconds
-- ARGV[2]  priority, from 1, the most important
-- ARGV[3]  place in the queue of who has waited before, "" for a newcomer
-- ARGV[4]  slots, >= 1
-- ARGV[5]  longest queue, 0: the call would not wait
-- ARGV[6]  millionths of the slots that are held back for more important calls, >= 0
-- ARGV[7]  share: into how many equal parts the slots are divided, >= 1; 1 unless Redis is away
-- ARGV[8]  slots that the same process holds elsewhere, >= 0; 0 unless Redis is away
-- ARGV[9]  now_us, "" for the server's clock
--
-- Reply: { state "inside", "waiting" or "full", place in the queue or 0, fencing number or 0, how many are inside, the
--          token of the waiter that was told that it may be its turn, or "" }
--- @include "free_slot"

-- First what is asked by far most often, when there is a free slot and nobody waits. To define and run what decides
-- everything, below, would take half as long again.
if #redis.call("HGETALL", KEYS[1]) == 0 then
  local inside = look_for_slot(2, 1)
  if inside then
    return { "inside", 0, hold_slot(KEYS[2], KEYS[5], ARGV[1], read_clock(ARGV[9])), inside + 1, "" }
  end
end

-- Everything else.
--- @include "enter"

local slots, overrides = read_slots(2, read_clock(ARGV[9])), read_overrides(KEYS[1])
local it = check_slots(slots, overrides, 1)
if problem then
  return problem
end
return { enter(slots, it) }
