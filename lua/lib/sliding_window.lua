--- @include "integers"

-- Sliding window: at most `limit` in every interval of `window` microseconds, both ends included.
-- A log of calls: a sorted set by the time at which each counts as made. A member is "sum:cost", where `sum` adds up
-- all costs up to and including its own, zero-padded to sort like a number; what lies in the window is the difference
-- of two sums, whatever the number and the costs of its entries. An exact window (slot 1) has an entry for each call.
-- Others move a call to the end of its slot, where it joins the entry that is there: it counts rather too long.
local sliding_window = {}

local function parse(member)
  local sum, cost = string.match(member or "", "^(%d+):(%d+)$")
  return tonumber(sum), tonumber(cost)
end

local function add_entry(log, time, sum, cost)
  redis.call("ZADD", log.key, to_text(time), string.format("%016.0f:%.0f", sum, cost))
end

-- By how much an entry of `cost` is moved ahead: one that is larger than the limit counts for as many windows.
local function debt(log, cost)
  return cost > log.limit and math.ceil(log.window * (cost - log.limit) / log.limit) or 0
end

-- Reads the log at `key`: the limit, the window and the slot in microseconds, and by how many the limit is divided.
-- A share below 1 becomes 1 in a longer window.
function sliding_window.check(key, now, limit, window, slot, share)
  if share > limit then
    window, limit = math.ceil(window * share / limit), 1
  else
    limit = math.floor(limit / share)
  end
  local log = { key = key, now = now, limit = limit, window = window, slot = slot, divided = share > 1, used = 0 }
  local newest = redis.call("ZRANGE", key, -1, -1, "WITHSCORES")
  log.sum, log.last_cost = parse(newest[1])
  if not log.sum then
    log.sum, log.broken = 0, newest[1] ~= nil
    return log
  end
  log.last = tonumber(newest[2])
  -- Further ahead than any clock that goes on could have written it: the server's clock went back. What counts now
  -- counts as made now.
  log.rebased = log.last > now + slot + debt(log, log.last_cost) + window
  local sum, cost = parse(redis.call("ZRANGEBYSCORE", key, to_text(now - window), "+inf", "LIMIT", 0, 1)[1])
  if sum then
    log.start, log.used = sum - cost, log.sum - (sum - cost)
  end
  return log
end

-- The rank and the time of the entry with which at least `amount` of what the window holds will have left it.
-- A binary search: the sums grow with the rank.
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

-- Microseconds until `cost` fits, -1: never. A cost above a share waits until the window is empty.
function sliding_window.wait(log, cost)
  if cost > log.limit then
    if not log.divided then
      return -1
    end
    cost = log.limit
  end
  local excess = log.used + cost - log.limit
  if excess <= 0 then
    return 0
  elseif log.rebased then
    return log.window + 1
  end
  local _, entry = entry_that_frees(log, excess)
  return to_wait(tonumber(entry[2]) + log.window + 1 - log.now)
end

function sliding_window.reset_after(log)
  if log.used == 0 then
    return 0
  end
  return log.rebased and log.window + 1 or to_wait(log.last + log.window + 1 - log.now)
end

function sliding_window.remaining(log)
  return math.max(0, log.limit - log.used)
end

function sliding_window.size(log)
  return log.limit
end

function sliding_window.delay()
  return 0
end

-- Drops what no longer counts, and draws a log together that lies ahead of the clock.
local function tidy(log)
  if log.rebased or log.broken then
    redis.call("DEL", log.key)
    log.last, log.last_cost = nil, nil
    if log.rebased and log.used > 0 then
      log.last, log.last_cost, log.start = log.now, log.used, log.sum - log.used
      add_entry(log, log.now, log.sum, log.used)
    end
    log.rebased, log.broken = false, false
  else
    redis.call("ZREMRANGEBYSCORE", log.key, "-inf", "(" .. to_text(log.now - log.window))
  end
end

-- The last write of all: a key that lost its last entry on the way has lost its time to live with it.
local function expire(log)
  redis.call("PEXPIRE", log.key, to_ttl(sliding_window.reset_after(log)))
end

function sliding_window.write(log)
  tidy(log)
  expire(log)
end

function sliding_window.take(log, cost)
  tidy(log)
  local time = math.ceil(log.now / log.slot) * log.slot + debt(log, cost)
  time = math.max(time, log.last or 0)
  log.sum, log.used = log.sum + cost, log.used + cost
  log.start = log.sum - log.used
  if log.slot > 1 and time == log.last then
    redis.call("ZREMRANGEBYRANK", log.key, -1, -1)
    cost = cost + log.last_cost
  end
  add_entry(log, time, log.sum, cost)
  log.last, log.last_cost = time, cost
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
  local sum = parse(entry[1])
  redis.call("ZREMRANGEBYRANK", log.key, 0, rank)
  log.start, log.used = log.start + cost, log.used - cost
  if sum > log.start then
    add_entry(log, tonumber(entry[2]), sum, sum - log.start)
    if sum == log.sum then
      log.last_cost = sum - log.start
    end
  end
  expire(log)
end
