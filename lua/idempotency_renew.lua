-- Prolongs the leases of claims whose calls still run. A record that was lost is written anew.
-- Twin: shared_resilience.records.renew
--
-- KEYS     records (see lib/record.lua), of one resource
-- ARGV[1]  for how many microseconds the records are kept, >= 1
-- ARGV     then for each record: token, fencing number, >= 0, and fingerprint
-- ARGV[#]  now_us, "" for the server's clock
--
-- Reply: for each record, 1 if the token has it, 0 if it has lost it
--- @include "record"

local ttl, now = argument("time to live", ARGV[1], 1), read_clock(ARGV[#ARGV])
for index = 3, #ARGV - 1, 3 do
  argument("fencing", ARGV[index], 0)
end
if problem then
  return problem
end

local reply = {}
for index, record in ipairs(KEYS) do
  local token, fencing, fingerprint = ARGV[3 * index - 1], to_integer(ARGV[3 * index]), ARGV[3 * index + 1]
  reply[index] = 0
  if is_owner(record, token) then
    hold_record(record, token, fencing, fingerprint, now, ttl)
    reply[index] = 1
  end
end
return reply
