--- @include "arguments"
--- @include "clock"
--- @include "lease"

-- The record of the calls that are made once under a key, a hash:
-- state           "running", "done" or "released"
-- owner           token of the call that has claimed the key last; it ends with the length of its lease
-- fencing         greater than that of any claim before, also after the clock went back
-- lease_until_us  until when nobody else may claim the key, while it is running
-- fingerprint     of the arguments
-- codec, result   what the call has returned, and how it is written down
-- stored_us       since when it is done

-- Claims the key of `record` for `token` until the end of its lease, and keeps the record for `ttl` microseconds.
local function hold_record(record, token, fencing, fingerprint, now, ttl)
  redis.call("HSET", record, "state", "running", "owner", token, "fencing", to_text(fencing), "fingerprint",
    fingerprint, "lease_until_us", to_text(now + lease_of(token)))
  redis.call("PEXPIRE", record, to_ttl(ttl))
end

-- Whether `token` may still write: the key is its own, or the record is lost and nobody has claimed the key since.
local function is_owner(record, token)
  local stored = redis.call("HMGET", record, "state", "owner")
  return not stored[1] or stored[1] == "running" and stored[2] == token
end
