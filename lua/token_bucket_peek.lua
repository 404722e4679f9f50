-- Says what taking `need` from a token bucket would answer, and changes nothing.
-- Twin: shared_resilience.token_bucket.peek
--
-- KEYS[1]  hash of the bucket: microtokens, time_us; absent means full
-- KEYS[2]  hash of the resource's overrides
-- ARGV[1]  capacity, millionths of a token, >= 1
-- ARGV[2]  refill, millionths of a token per period, >= 1
-- ARGV[3]  per, length of a period in microseconds, >= 1; refill * per <= 2^53
-- ARGV[4]  need, millionths of a token, >= 1
-- ARGV[5]  now_us, "" for the server's clock
--
-- Reply: as token_bucket.lua
--- @include "clock"
--- @include "token_bucket"

local key = KEYS[1]
local problem = refuse("capacity", ARGV[1], 1) or refuse("refill", ARGV[2], 1) or refuse("per", ARGV[3], 1)
  or refuse("need", ARGV[4], 1)
if problem then
  return problem
end
local capacity, refill, per = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local need = tonumber(ARGV[4])
local now = read_clock(ARGV[5])

local bucket = token_bucket.check(key, now, capacity, refill, per)
return token_bucket.reply(bucket, now, capacity, refill, per, need, bucket.available >= need)
