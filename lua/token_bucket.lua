-- Takes `cost` from limits that are all token buckets, all or nothing.
-- Twin: shared_resilience.limits.take
--
-- KEYS, ARGV and reply as rate_limiter.lua
--- @include "bucket"
--- @include "clock"

-- First what is asked by far most often: one bucket, nothing overridden, enough tokens. To define and run what decides
-- everything, below, would take half as long again; it decides afresh if this does not, since nothing is written then.
do
  local cost, size, refill, per = tonumber(ARGV[1]), tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
  local usual = #KEYS == 2 and ARGV[2] == "1" and ARGV[3] == "-1" and ARGV[4] == "0"
    and ARGV[5] == "token_bucket" and cost and size and refill and per and math.min(cost, size, refill, per) >= 1
    and math.max(cost, size, refill, per) <= LARGEST and cost % 1 + size % 1 + refill % 1 + per % 1 == 0
  if usual and #redis.call("HGETALL", KEYS[1]) == 0 then
    local key, now, capacity, need = KEYS[2], read_clock(ARGV[#ARGV]), size * MILLION, cost * MILLION
    local stored = redis.call("HMGET", key, "microtokens", "time_us")
    local tokens, time = to_integer(stored[1]), to_integer(stored[2])
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

-- Everything else.
--- @include "token_bucket"
--- @include "take"
