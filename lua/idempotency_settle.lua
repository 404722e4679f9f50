-- Ends a claim: keeps what the call has returned, or lets the key go. Tells those who wait for it. A record that was
-- lost is written anew.
-- Twin: shared_resilience.records.settle
--
-- KEYS[1]  record of the key (see lib/record.lua)
-- ARGV[1]  token
-- ARGV[2]  fencing number, >= 0
-- ARGV[3]  fingerprint of the arguments
-- ARGV[4]  for how many microseconds the record is kept, >= 1
-- ARGV[5]  state: "done" or "released"
-- ARGV[6]  codec, "" when it is released
-- ARGV[7]  result, likewise
-- ARGV[8]  now_us, "" for the server's clock
--
-- Reply: { 1, or 0 if the token does not have the key: then nothing changes }
--- @include "record"

local record, state = KEYS[1], ARGV[5]
local fencing, ttl = argument("fencing", ARGV[2], 0), argument("time to live", ARGV[4], 1)
if state ~= "done" and state ~= "released" then
  problem = problem or redis.error_reply("ERR state must be done or released")
end
if problem then
  return problem
end
local is_lost = redis.call("HEXISTS", record, "state") == 0
if not is_owner(record, ARGV[1]) or is_lost and state == "released" then
  return { 0 }
end

local now = read_clock(ARGV[8])
redis.call("HDEL", record, "lease_until_us")
redis.call("HSET", record, "state", state)
if is_lost then
  redis.call("HSET", record, "owner", ARGV[1], "fencing", to_text(fencing), "fingerprint", ARGV[3])
end
if state == "done" then
  redis.call("HSET", record, "codec", ARGV[6], "result", ARGV[7], "stored_us", to_text(now))
end
redis.call("PEXPIRE", record, to_ttl(ttl))
local stem, name = string.match(record, "^(.-}:)(.*)$")
if stem then
  redis.pcall("PUBLISH", stem .. "done", name)
end
return { 1 }
