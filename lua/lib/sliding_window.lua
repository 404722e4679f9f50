--- @include "integers"
--- @include "kinds"

-- Sliding window: at most `limit` in every interval of `window` microseconds, both ends included.
-- A log of calls: a sorted set by the time at which each counts as made. A member is "sum:cost", where `sum` adds up
-- all costs up to and including its own, zero-padded to sort like a number; what lies in the window is the difference
-- of two sums, whatever the number and the costs of its entries. An exact window (slot 1) has an entry for each call.
-- Others move a call to the end of its slot, where it joins the entry that is there: it counts rather too long.
local sliding_window = {}
KINDS.sliding_window = sliding_window

local function parse(member)
  local sum, cost = string.match(member or "", "^(%d+):(%d+)$")
  return tonumber(sum), tonumber(cost)
end

local function add_entry(log, time, sum, cost)
  redis.call("ZADD", log.key, to_text(time), string.format("%016d:%d", sum, cost))
end

-- By how much an entry of `cost` is moved ahead: one that is larger than the limit counts for as many windows.
local function debt(log, cost)
  return cost > log.size and math.min(math.ceil(log.window * (cost - log.size) / log.size), LONGEST_WAIT) or 0
end

-- What `used`, `last` and `rebased` mean for everybody.
local function measure(log)
  log.remaining = math.max(0, log.size - log.used)
  log.reset_after = 0
  if log.used > 0 then
    local left = log.rebased and log.window + 1 or log.last + log.window + 1 - log.now
    log.reset_after = math.min(left, LONGEST_WAIT)
  end
end

-- Reads the log at `key`: the limit, the window and the slot in microseconds, and by how many the limit is divided.
-- A share below 1 becomes 1 in a longer window.
function sliding_window.check(key, now, limit, window, slot, share)
  if share > limit then
    window, limit = math.ceil(window * share / limit), 1
  else
    limit = math.floor(limit / share)
  end
  local log = {
    key = key, now = now, size = limit, window = window, slot = slot, divided = share > 1, delay = 0, rebased = false,
    sum = 0, used = 0, oldest_cost = 0, remaining = limit, reset_after = 0,
  }
  local newest = redis.call("ZRANGE", key, -1, -1, "WITHSCORES")
  local sum, last_cost = parse(newest[1])
  if not sum then
    log.broken = newest[1] ~= nil
    return log
  end
  log.sum, log.start, log.last, log.last_cost = sum, sum, tonumber(newest[2]), last_cost
  -- Further ahead than any clock that goes on could have written it: the server's clock went back. What counts now
  -- counts as made now.
  log.rebased = log.last > now + slot + debt(log, last_cost) + window
  local from = to_text(now - window)
  local oldest = redis.call("ZRANGEBYSCORE", key, from, "+inf", "WITHSCORES", "LIMIT", 0, 1)
  local oldest_sum, oldest_cost = parse(oldest[1])
  if oldest_sum then
    log.start = oldest_sum - oldest_cost
    log.used = sum - log.start
    log.oldest_cost, log.oldest_time = oldest_cost, tonumber(oldest[2])
    measure(log)
  end
  return log
end

-- The rank of the entry with which at least `amount` of what the window holds will have left it, and that entry with
-- its time. A binary search: the sums grow with the rank.
local function entry_that_frees(log, amount)
  local low = redis.call("ZCOUNT", log.key, "-inf", "(" .. to_text(log.now - log.window))
  local high = redis.call("ZCARD", log.key) - 1
  while low < high do
    local middle = math.floor((low + high) / 2)
    if parse(redis.call("ZRANGE", log.key, middle, middle)[1]) - log.start >= amount then
      high = middle
    else
      low = middle + 1
    end
  end
  return low, redis.call("ZRANGE", log.key, low, low, "WITHSCORES")
end

-- A cost above a share waits until the window is empty.
function sliding_window.wait(log, cost)
  if cost > log.size then
    if not log.divided then
      return -1
    end
    cost = log.size
  end
  local excess = log.used + cost - log.size
  if excess <= 0 then
    return 0
  elseif log.rebased then
    return log.window + 1
  end
  local time = log.oldest_time
  if excess > log.oldest_cost then
    local _, entry = entry_that_frees(log, excess)
    time = tonumber(entry[2])
  end
  return math.min(time + log.window + 1 - log.now, LONGEST_WAIT)
end

-- Drops what no longer counts, and draws a log together that lies ahead of the clock.
local function tidy(log)
  if log.rebased then
    redis.call("DEL", log.key)
    log.rebased, log.last, log.last_cost = false, log.now, log.used
    log.oldest_cost, log.oldest_time = log.used, log.now
    add_entry(log, log.now, log.sum, log.used)
  elseif log.broken then
    redis.call("DEL", log.key)
  else
    redis.call("ZREMRANGEBYSCORE", log.key, "-inf", "(" .. to_text(log.now - log.window))
  end
end

-- The last write of all: a key that lost its last entry on the way has lost its time to live with it.
local function expire(log)
  measure(log)
  redis.call("PEXPIRE", log.key, to_ttl(log.reset_after))
end

local function append(log, cost)
  local time = math.ceil(log.now / log.slot) * log.slot + debt(log, cost)
  time = math.max(time, log.last or 0)
  log.sum, log.used = log.sum + cost, log.used + cost
  if log.slot > 1 and time == log.last then
    redis.call("ZREMRANGEBYRANK", log.key, -1, -1)
    cost = cost + log.last_cost
  end
  add_entry(log, time, log.sum, cost)
  log.last = time
end

function sliding_window.take(log, cost)
  tidy(log)
  if cost > 0 then
    append(log, cost)
  end
  expire(log)
end

-- Gives `cost` back from the oldest entries that count, never more than there is. What was taken at `since` and has
-- left the window is back already.
function sliding_window.give(log, cost, since)
  cost = math.min(cost, log.used)
  if cost == 0 or since < log.now - log.window then
    return
  end
  tidy(log)
  local rank, entry = entry_that_frees(log, cost)
  local sum, time = parse(entry[1]), tonumber(entry[2])
  redis.call("ZREMRANGEBYRANK", log.key, 0, rank)
  log.start, log.used, log.oldest_cost = log.start + cost, log.used - cost, sum - log.start - cost
  if log.oldest_cost > 0 then
    log.oldest_time = time
    add_entry(log, time, sum, log.oldest_cost)
  end
  expire(log)
end
