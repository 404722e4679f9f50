-- Takes `cost` from limits that are all token buckets, all or nothing.
-- Twin: shared_resilience.limits.take
--
-- KEYS, ARGV and reply as rate_limiter.lua
--- @include "bucket"
--- @include "clock"

-- First what is asked by far most often: one bucket, nothing overridden, enough tokens. To define and run what decides
-- everything, below, would take half as long again; it decides afresh if this does not, since nothing is written then.
do
  local cost, share, max_delay = to_integer(ARGV[1]), to_integer(ARGV[2]), to_integer(ARGV[3])
  local capacity, refill, per = to_integer(ARGV[6]), to_integer(ARGV[7]), to_integer(ARGV[8])
  local usual = #KEYS == 2 and ARGV[4] == "token_bucket" and cost and share == 1 and max_delay and max_delay >= -1
    and capacity and refill and per and math.min(cost, capacity, refill, per) >= 1
  if usual and #redis.call("HGETALL", KEYS[1]) == 0 then
    local key, now, size, need = KEYS[2], read_clock(ARGV[#ARGV]), capacity, cost * MILLION
    local stored = redis.call("HMGET", key, "microtokens", "time_us")
    local tokens, time = to_integer(stored[1]), to_integer(stored[2])
    capacity = size * MILLION
    if not (tokens and time) then
      tokens, time = capacity, now
    end
    local available
    tokens, time, available = refilled(tokens, time, now, capacity, refill, per)
    if need <= available then
      tokens, available = tokens - need, available - need
      local reset_after = until_it_holds(capacity, tokens, time, now, refill, per)
      store_bucket(key, "microtokens", tokens, time, reset_after)
      return { 1, 1, size, math.floor(available / MILLION), 0, reset_after, 0, now, "" }
    end
  end
end

--- @include "token_bucket"
--- @include "take"
