-- Claims a key for one call, unless another call has it or has been made under it.
-- Twin: shared_resilience.records.claim
--
-- KEYS[1]  record of the key (see lib/record.lua)
-- ARGV[1]  token, which ends with a colon and the length of the lease in milliseconds
-- ARGV[2]  fingerprint of the arguments
-- ARGV[3]  for how many microseconds the record is kept, >= 1
-- ARGV[4]  now_us, "" for the server's clock
--
-- Reply: { "claimed", fencing number, 1 if it was taken over from a call whose lease is over, else 0, "", "" },
--        { "running", fencing number, microseconds that are left of the lease, "", "" },
--        { "done", fencing number, microseconds since then, codec, result } or
--        { "other_arguments", fencing number, 0, "", "" }
--- @include "record"

local record, token, fingerprint = KEYS[1], ARGV[1], ARGV[2]
local ttl = argument("time to live", ARGV[3], 1)
if problem then
  return problem
end

local now = read_clock(ARGV[4])
local stored = redis.call("HMGET", record, "state", "owner", "fencing", "fingerprint", "lease_until_us", "stored_us")
local state, owner, fencing = stored[1], stored[2], to_integer(stored[3]) or 0
if (state == "running" or state == "done") and stored[4] ~= fingerprint then
  return { "other_arguments", fencing, 0, "", "" }
end
if state == "done" then
  local kept = redis.call("HMGET", record, "codec", "result")
  return { "done", fencing, math.max(0, now - (to_integer(stored[6]) or now)), kept[1] or "", kept[2] or "" }
end

if state == "running" then
  -- No lease is longer than it can be, should the clock have gone back.
  local left = math.min((to_integer(stored[5]) or 0) - now, lease_of(owner or ""))
  if left > 0 and owner ~= token then
    redis.call("HSET", record, "lease_until_us", to_text(now + left))
    return { "running", fencing, left, "", "" }
  end
end
if state ~= "running" or owner ~= token then
  fencing = fencing >= now and fencing < LARGEST and fencing + 1 or now
end
hold_record(record, token, fencing, fingerprint, now, ttl)
return { "claimed", fencing, state == "running" and owner ~= token and 1 or 0, "", "" }
