-- The retries that a fleet may make: each request pays in a part of a retry, each retry takes a whole one out.
-- Twin: shared_resilience.retry_budget.settle
--
-- KEYS[1]  hash: microbalance (millionths of a retry), time_us, and the counters requests, retries, refused
-- ARGV[1]  1 to take a retry out, 0 only to pay in or to look
-- ARGV[2]  requests that pay in, >= 0
-- ARGV[3]  share: into how many equal parts floor and balances are divided, >= 1; 1 unless Redis is away
-- ARGV[4]  what a request pays in, in millionths of a retry, >= 0
-- ARGV[5]  floor: what comes back each second in any case, in millionths, >= 0; up to ten times as much, with which a
--          budget also begins
-- ARGV[6]  largest balance, in millionths, >= 0
-- ARGV[7]  now_us, "" for the server's clock
--
-- Reply: { 1 if a retry was taken out, else 0, balance in millionths, requests, retries, refused }
--- @include "arguments"
--- @include "clock"

local DAY_MS, MOST_AT_ONCE = "86400000", 1000000000
local wanted, requests = argument("wanted", ARGV[1], 0), argument("requests", ARGV[2], 0)
local share = argument("share", ARGV[3], 1)
local part, floor, most = argument("part", ARGV[4], 0), argument("floor", ARGV[5], 0), argument("most", ARGV[6], 0)
if problem then
  return problem
end
floor, most = math.floor(floor / share), math.floor(most / share)
local now, start = read_clock(ARGV[7]), math.min(10 * floor, most)

local stored = redis.call("HMGET", KEYS[1], "microbalance", "time_us", "requests", "retries", "refused")
local balance, time = to_integer(stored[1]), to_integer(stored[2])
if not (balance and time) then
  balance, time = start, now
end
if time > now then
  time = now
end
local passed_ms = math.floor((now - time) / 1000)
if balance < start then
  balance = math.min(start, balance + math.floor(floor * math.min(passed_ms, 10000) / 1000))
end
balance = math.min(most, balance + part * math.min(requests, MOST_AT_ONCE))

local taken = wanted == 1 and balance >= MILLION and 1 or 0
local refused = wanted == 1 and 1 - taken or 0
local all_requests, all_taken = (to_integer(stored[3]) or 0) + requests, (to_integer(stored[4]) or 0) + taken
local all_refused = (to_integer(stored[5]) or 0) + refused
if wanted == 1 or requests > 0 then
  balance = balance - taken * MILLION
  redis.call("HSET", KEYS[1], "microbalance", to_text(balance), "time_us", to_text(time + passed_ms * 1000),
    "requests", to_text(all_requests), "retries", to_text(all_taken), "refused", to_text(all_refused))
  redis.call("PEXPIRE", KEYS[1], DAY_MS)
end
return { taken, balance, all_requests, all_taken, all_refused }
