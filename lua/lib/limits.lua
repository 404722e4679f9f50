--- @include "arguments"
--- @include "clock"
--- @include "kinds"
--- @include "overrides"

-- The limits of a resource, each told by five arguments: kind, label, and three numbers of the kind.
-- token_bucket:   capacity, refill in millionths, per in microseconds (refill * per <= 2^53)
-- leaky_bucket:   the same, with the leak as refill
-- sliding_window: limit, window in microseconds, slot in microseconds (1: exact)
local RATES = { leaky_bucket = "leak_rate", token_bucket = "refill_rate" }
local LONGEST_WINDOW = 31622400

-- The three numbers in force: those of the caller, or what overrides them.
local function in_force(overrides, kind, label, first, second, third)
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

-- The states of the limits in KEYS[2] to KEYS[last] at `now`, as their kinds read them. They begin at ARGV[start].
-- Stops at a problem.
local function check_limits(overrides, now, share, start, last)
  local limits = {}
  for index = 2, last do
    local at = start + 5 * (index - 2)
    local kind = KINDS[ARGV[at]]
    if not kind then
      problem = problem or redis.error_reply("ERR no such kind of limit in this script")
    end
    local first = argument("first number of a limit", ARGV[at + 2], 1)
    local second = argument("second number of a limit", ARGV[at + 3], 1)
    local third = argument("third number of a limit", ARGV[at + 4], 1)
    if problem then
      return limits
    end
    if overrides then
      first, second, third = in_force(overrides, ARGV[at], ARGV[at + 1], first, second, third)
    end
    local limit = kind.check(KEYS[index], now, first, second, third, share)
    limit.kind = kind
    limits[index - 1] = limit
  end
  return limits
end

-- The call at hand: its cost, its time, what is overridden, for how long the resource is paused, and the limits as they
-- stand, which begin at ARGV[5] and are followed by `others` keys. Of no use if there is a problem.
local function read_call(may_write, others)
  local call = { cost = argument("cost", ARGV[1], 1), now = read_clock(ARGV[#ARGV]), paused = 0, held_back = 0 }
  local share = argument("share", ARGV[2], 1)
  call.overrides = read_overrides(KEYS[1])
  call.limits = check_limits(call.overrides, call.now, share, 5, #KEYS - (others or 0))
  if call.overrides and not problem then
    call.paused = call.overrides.paused(call.now, may_write)
  end
  return call
end

-- What must be there for `cost` to pass: of each limit, `held_back` millionths stay for more important calls. A cost
-- that finds no place beside them passes when all is there.
local function needed(limit, cost, held_back)
  if held_back == 0 then
    return cost
  end
  return math.max(cost, math.min(limit.size, cost + math.ceil(limit.size * held_back / MILLION)))
end

-- Whether `cost` may pass: the number of the limit that keeps it longest (0: none, or the pause), for how many
-- microseconds (-1: for ever), and how long it waits for its turn. What would have to do so for longer than `max_delay`
-- does not enter (-1: any delay).
local function longest_wait(call, cost, max_delay)
  if call.paused > 0 then
    return 0, call.paused, 0
  end
  local keeper, longest, delay = 0, 0, 0
  for index = 1, #call.limits do
    local limit = call.limits[index]
    local wait = limit.kind.wait(limit, needed(limit, cost, call.held_back))
    if wait >= 0 and max_delay >= 0 then
      wait = math.max(wait, limit.delay - max_delay)
    end
    if longest >= 0 and (wait < 0 or wait > longest) then
      keeper, longest = index, wait
    end
    delay = math.max(delay, limit.delay)
  end
  return keeper, longest, delay
end

-- The reply of every limit script: allowed, the number of the limit that the rest speaks of (0: the pause), its limit,
-- what remains, retry after (-1: never), reset after, delay, the time of the decision, overrides that were ignored.
-- A refusal speaks of its keeper, an admission of the limit that has least left.
local function reply_of(call, keeper, wait, delay)
  local limits = call.limits
  if wait == 0 then
    keeper = 1
    for index = 2, #limits do
      if limits[index].remaining < limits[keeper].remaining then
        keeper = index
      end
    end
  end
  local limit = limits[math.max(1, keeper)]
  return {
    wait == 0 and 1 or 0, keeper, limit.size, limit.remaining, wait, keeper > 0 and limit.reset_after or wait, delay,
    call.now, call.overrides and call.overrides.ignored or "",
  }
end
