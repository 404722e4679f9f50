-- Gives `amount` back to a token bucket; what would overflow the capacity is dropped.
-- Twin: shared_resilience.token_bucket.refund
--
-- KEYS[1]  hash of the bucket: microtokens, time_us; absent means full
-- KEYS[2]  hash of the resource's overrides
-- ARGV[1]  capacity, millionths of a token, >= 1
-- ARGV[2]  refill, millionths of a token per period, >= 1
-- ARGV[3]  per, length of a period in microseconds, >= 1; refill * per <= 2^53
-- ARGV[4]  amount, millionths of a token, >= 1
-- ARGV[5]  now_us, "" for the server's clock
--
-- Reply: as token_bucket.lua, always allowed
--- @include "clock"
--- @include "token_bucket"

local key = KEYS[1]
local problem = refuse("capacity", ARGV[1], 1) or refuse("refill", ARGV[2], 1) or refuse("per", ARGV[3], 1)
  or refuse("amount", ARGV[4], 1)
if problem then
  return problem
end
local capacity, refill, per = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local amount = tonumber(ARGV[4])
local now = read_clock(ARGV[5])

local bucket = token_bucket.check(key, now, capacity, refill, per)
token_bucket.take(key, bucket, now, capacity, refill, per, amount)
return token_bucket.reply(bucket, now, capacity, refill, per, amount, true)
