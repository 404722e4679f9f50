-- Overrides numbers of a resource's limits for the whole fleet, or ends that. Overrides have no time to live: they end
-- when they are cleared.
-- Twin: shared_resilience.limits.override
--
-- KEYS[1]  hash of the resource's overrides
-- ARGV     field, value for each; the value "" clears the field
-- ARGV[#]  now_us, unused here; every script ends with it
--
-- Reply: { number of fields }

for index = 1, #ARGV - 1, 2 do
  if ARGV[index + 1] == "" then
    redis.call("HDEL", KEYS[1], ARGV[index])
  else
    redis.call("HSET", KEYS[1], ARGV[index], ARGV[index + 1])
  end
end
return { (#ARGV - 1) / 2 }
