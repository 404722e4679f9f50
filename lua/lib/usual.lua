--- @include "bucket"
--- @include "clock"

-- What is asked by far most often: token buckets, nothing overridden or held back, enough tokens in each. To define and
-- run what decides everything would take half as long again. Nothing is written before it is known that all is usual.

-- The cost of a call that may be usual, and its time; nil if it is not.
local function check_usual()
  local cost = tonumber(ARGV[1])
  local usual = cost and cost >= 1 and cost % 1 == 0 and ARGV[2] == "1" and ARGV[3] == "-1" and ARGV[4] == "0"
  if usual and #redis.call("HGETALL", KEYS[1]) == 0 then
    return cost, read_clock(ARGV[#ARGV])
  end
end

-- Takes `cost` from the buckets in KEYS[index] to KEYS[last], told from ARGV[5] on; `reply` becomes that of
-- rate_limiter.lua. Returns whether it did, all or nothing: each bucket is written after those behind it.
local function take_usual(index, last, cost, now, reply)
  local at, key, need = 5 * index - 5, KEYS[index], cost * MILLION
  local size, refill, per = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  local usual = ARGV[at] == "token_bucket" and size and refill and per and math.min(size, refill, per) >= 1
    and math.max(cost, size, refill, per) <= LARGEST and size % 1 + refill % 1 + per % 1 == 0
  if not usual then
    return false
  end
  local stored = redis.call("HMGET", key, "microtokens", "time_us")
  local capacity, tokens, time = size * MILLION, to_integer(stored[1]), to_integer(stored[2])
  if not (tokens and time) then
    tokens, time = capacity, now
  end
  local available
  tokens, time, available = refilled(tokens, time, now, capacity, refill, per)
  if need > available then
    return false
  end
  tokens, available = tokens - need, math.floor((available - need) / MILLION)
  local reset_after = until_it_holds(capacity, tokens, time, now, refill, per)
  if available < reply[4] then
    reply[2], reply[3], reply[4], reply[6] = index - 1, size, available, reset_after
  end
  if index < last and not take_usual(index + 1, last, cost, now, reply) then
    return false
  end
  store_bucket(key, "microtokens", tokens, time, reset_after)
  return true
end
