--- @include "leaky_bucket"
--- @include "overrides"
--- @include "sliding_window"
--- @include "token_bucket"

-- The limits of a resource, of any kind, told by five arguments each: kind, label, and three numbers of the kind.
-- token_bucket:   capacity, refill in millionths, per in microseconds (refill * per <= 2^53)
-- leaky_bucket:   the same, with the leak as refill
-- sliding_window: limit, window in microseconds, slot in microseconds (1: exact)
local KINDS = { leaky_bucket = leaky_bucket, sliding_window = sliding_window, token_bucket = token_bucket }
local RATES = { leaky_bucket = "leak_rate", token_bucket = "refill_rate" }
local LONGEST_WINDOW = 31622400

-- The three numbers in force: those of the caller, or what overrides them.
local function in_force(kind, label, first, second, third)
  local stem = "limit." .. label .. "."
  if kind == "sliding_window" then
    local window = overrides.number(stem .. "window", 0.001, LONGEST_WINDOW)
    if window then
      second = math.floor(window * MILLION + 0.5)
      third = third > 1 and math.ceil(second / 58) or 1
    end
    return overrides.count(stem .. "limit") or first, second, third
  end
  local refill, per = overrides.rate(stem .. RATES[kind])
  return overrides.count(stem .. "capacity") or first, refill or second, per or third
end

-- An error reply if an argument is not what it must be, else nil. The limits begin at ARGV[start].
local function refuse_arguments(start)
  local problem = refuse("cost", ARGV[1], 1) or refuse("share", ARGV[2], 1)
  for index = start, start + 5 * (#KEYS - 1) - 1, 5 do
    local kind = ARGV[index]
    problem = problem or (not KINDS[kind] and redis.error_reply("ERR no such kind of limit"))
      or refuse("first number of " .. kind, ARGV[index + 2], 1)
      or refuse("second number of " .. kind, ARGV[index + 3], 1)
      or refuse("third number of " .. kind, ARGV[index + 4], 1)
  end
  return problem or nil
end

-- The states of all limits at `now`, as their kinds read them.
local function check_limits(now, share, start)
  local limits = {}
  for index = 2, #KEYS do
    local at = start + 5 * (index - 2)
    local kind = ARGV[at]
    local first, second, third =
      in_force(kind, ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4]))
    local limit = KINDS[kind].check(KEYS[index], now, first, second, third, share)
    limit.kind = KINDS[kind]
    limits[index - 1] = limit
  end
  return limits
end

-- Whether `cost` may pass: the number of the limit that keeps it longest (0: none), and for how many microseconds
-- (-1: for ever). What would have to wait longer than `max_delay` after it has entered does not enter (-1: any delay).
local function longest_wait(limits, cost, max_delay)
  local keeper, longest = 0, 0
  for index, limit in ipairs(limits) do
    local wait = limit.kind.wait(limit, cost)
    if wait >= 0 and max_delay >= 0 then
      wait = math.max(wait, limit.kind.delay(limit) - max_delay)
    end
    if longest >= 0 and (wait < 0 or wait > longest) then
      keeper, longest = index, wait
    end
  end
  return keeper, longest
end

-- The number of the limit that has least left.
local function tightest(limits)
  local best = 1
  for index, limit in ipairs(limits) do
    if limit.kind.remaining(limit) < limits[best].kind.remaining(limits[best]) then
      best = index
    end
  end
  return best
end

local function longest_delay(limits)
  local delay = 0
  for _, limit in ipairs(limits) do
    delay = math.max(delay, limit.kind.delay(limit))
  end
  return delay
end

-- The reply of every limit script: allowed, the number of the limit that the rest speaks of (0: the pause), its limit,
-- what remains, retry after (-1: never), reset after, delay, the time of the decision, overrides that were ignored.
local function reply_of(limits, keeper, wait, delay, now)
  local index = keeper > 0 and keeper or tightest(limits)
  local limit = limits[index]
  return {
    wait == 0 and 1 or 0, index, limit.kind.size(limit), limit.kind.remaining(limit), wait,
    limit.kind.reset_after(limit), delay, to_text(now), overrides.ignored,
  }
end

local function reply_paused(limits, left, now)
  local limit = limits[1]
  return { 0, 0, limit.kind.size(limit), limit.kind.remaining(limit), left, left, 0, to_text(now), overrides.ignored }
end
