--- @include "clock"
--- @include "integers"

-- The slots of a bulkhead and the queue before them, in four keys that follow each other:
-- holders   zset  tokens of those inside, by the end of their leases in microseconds
-- queue     zset  tokens of those that wait, by place: priority * 10^15 + arrival in units of 10 microseconds
-- waiters   zset  the same tokens by their last sign of life, in microseconds
-- fencing   text  the last fencing number: greater than all before, also after the clock went back
-- A token ends with a colon and the length of its lease in milliseconds.
local ALIVE_FOR = 2000000

-- The keys from KEYS[first] on, at `now`.
local function read_slots(first, now)
  local holders, queue, waiters, fencing = KEYS[first], KEYS[first + 1], KEYS[first + 2], KEYS[first + 3]
  return { holders = holders, queue = queue, waiters = waiters, fencing = fencing, now = now }
end

local function drop_waiter(slots, token)
  redis.call("ZREM", slots.queue, token)
  redis.call("ZREM", slots.waiters, token)
end

-- The first waiter that is alive, and its place; the dead before it are dropped.
local function first_waiter(slots)
  while true do
    local first = redis.call("ZRANGE", slots.queue, 0, 0, "WITHSCORES")
    if not first[1] then
      return nil
    end
    local seen = tonumber(redis.call("ZSCORE", slots.waiters, first[1]) or nil)
    if seen and seen > slots.now - ALIVE_FOR and seen <= slots.now then
      return first[1], tonumber(first[2])
    end
    drop_waiter(slots, first[1])
  end
end

-- Tells the first waiter, whichever process it is in, that it may be its turn: who listens knows its tokens. Returns
-- the token, or "" if nobody waits.
local function wake_first(slots)
  local first = first_waiter(slots)
  if first then
    redis.pcall("PUBLISH", (string.gsub(slots.holders, "bulkhead$", "wake")), first)
  end
  return first or ""
end

-- Leaves the queue; the next one is told if it was the first. Returns whom it has told.
local function leave_queue(slots, token)
  local was_first = redis.call("ZRANK", slots.queue, token) == 0
  drop_waiter(slots, token)
  return was_first and wake_first(slots) or ""
end
