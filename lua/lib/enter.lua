--- @include "free_slot"
--- @include "slots"

local PRIORITY = 1000000000000000
local DEAD_AT_ONCE = 100

-- Whether `longest` wait already, which the dead do not count for.
local function is_queue_full(slots, longest)
  if redis.call("ZCARD", slots.queue) < longest then
    return false
  end
  local long_ago = to_text(slots.now - ALIVE_FOR)
  for _, token in ipairs(redis.call("ZRANGEBYSCORE", slots.waiters, "-inf", long_ago, "LIMIT", 0, DEAD_AT_ONCE)) do
    drop_waiter(slots, token)
  end
  return redis.call("ZCARD", slots.queue) >= longest
end

-- The place of whoever arrives now: behind all that came before with the same priority, also after the clock went back.
local function next_place(slots, priority)
  local first, behind = priority * PRIORITY, "(" .. to_text((priority + 1) * PRIORITY)
  local last = redis.call("ZREVRANGEBYSCORE", slots.queue, behind, to_text(first), "WITHSCORES", "LIMIT", 0, 1)
  return math.max(first + math.floor(slots.now / 10), (tonumber(last[2]) or 0) + 1)
end

-- The call that wants a slot, which ARGV[at] and the following tell, and whether it finds one:
-- token, priority, place ("" for a newcomer), slots, longest queue (0: it would not wait), millionths of the slots that
-- are held back for more important calls, share and elsewhere (see set_size). Of no use if there is a problem.
local function check_slots(slots, overrides, at)
  local it = { token = ARGV[at], priority = argument("priority", ARGV[at + 1], 1) }
  if ARGV[at + 2] ~= "" then
    it.place = argument("place", ARGV[at + 2], 1)
  end
  local most, longest = argument("slots", ARGV[at + 3], 1), argument("longest queue", ARGV[at + 4], 0)
  local held_back, share = argument("held back slots", ARGV[at + 5], 0), argument("share of slots", ARGV[at + 6], 1)
  local elsewhere = argument("slots elsewhere", ARGV[at + 7], 0)
  if problem then
    return it
  end
  if it.place then -- it may be inside, if the reply that said so was lost
    redis.call("ZREM", slots.holders, it.token)
  end
  set_size(slots, overrides, most, share, elsewhere)
  it.longest = longest > 0 and overrides and overrides.count("bulkhead.max_queue_size") or longest
  local size = slots.size + elsewhere
  local mine = slots.size - math.min(math.ceil(size * held_back / MILLION), size - 1)
  it.inside = count_inside(slots, mine)
  local first, place = first_waiter(slots)
  local passed_over = first and first ~= it.token and place < (it.place or (it.priority + 1) * PRIORITY)
  it.fits = it.inside < mine and not passed_over
  return it
end

-- Takes the slot. Returns the fencing number, and whom it has told that there is another one.
local function take_slot(slots, it)
  local fencing, next = hold_slot(slots.holders, slots.fencing, it.token, slots.now), ""
  if it.place then
    drop_waiter(slots, it.token)
    next = it.inside + 1 < slots.size and wake_first(slots) or ""
  end
  return fencing, next
end

-- Has the call wait. Whether it does: not in a queue that is full, unless it has been in it before.
local function join_queue(slots, it)
  if it.longest == 0 or not it.place and is_queue_full(slots, it.longest) then
    return false
  end
  local latest = next_place(slots, it.priority)
  it.place = math.min(it.place or latest, latest) -- who comes from another clock is at worst the last
  redis.call("ZADD", slots.queue, to_text(it.place), it.token)
  redis.call("ZADD", slots.waiters, to_text(slots.now), it.token)
  redis.call("PEXPIRE", slots.queue, MINUTE_MS)
  redis.call("PEXPIRE", slots.waiters, MINUTE_MS)
  return true
end

-- The reply: state ("inside", "waiting", "full", "limited"), place or 0, fencing number or 0, how many are inside,
-- token of the waiter that was told, or "".
local function enter(slots, it)
  if it.fits then
    local fencing, next = take_slot(slots, it)
    return "inside", 0, fencing, it.inside + 1, next
  end
  if join_queue(slots, it) then
    return "waiting", it.place, 0, it.inside, ""
  end
  return "full", 0, 0, it.inside, it.place and leave_queue(slots, it.token) or ""
end
