-- Takes `cost` from a token bucket that holds at least `need`; otherwise changes nothing and says when to come back.
-- Twin: shared_resilience.token_bucket.take
--
-- KEYS[1]  hash of the bucket: microtokens, time_us; absent means full
-- KEYS[2]  hash of the resource's overrides
-- ARGV[1]  capacity, millionths of a token, >= 1
-- ARGV[2]  refill, millionths of a token per period, >= 1
-- ARGV[3]  per, length of a period in microseconds, >= 1; refill * per <= 2^53
-- ARGV[4]  cost, millionths of a token, >= 1
-- ARGV[5]  need, millionths that must be there for the call to pass, >= 1; the cost, as a rule
-- ARGV[6]  now_us, "" for the server's clock
--
-- Reply: { allowed 0 | 1, limit in whole tokens, remaining whole tokens,
--          microseconds until `need` is there (0 when allowed, -1: never), microseconds until the bucket is full }
--- @include "clock"
--- @include "token_bucket"

local key = KEYS[1]
local problem = refuse("capacity", ARGV[1], 1) or refuse("refill", ARGV[2], 1) or refuse("per", ARGV[3], 1)
  or refuse("cost", ARGV[4], 1) or refuse("need", ARGV[5], 1)
if problem then
  return problem
end
local capacity, refill, per = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local cost, need = tonumber(ARGV[4]), tonumber(ARGV[5])
local now = read_clock(ARGV[6])

local bucket = token_bucket.check(key, now, capacity, refill, per)
local allowed = bucket.available >= need
if allowed then
  token_bucket.take(key, bucket, now, capacity, refill, per, -cost)
elseif bucket.rebased then
  token_bucket.take(key, bucket, now, capacity, refill, per, 0)
end
return token_bucket.reply(bucket, now, capacity, refill, per, need, allowed)
