-- Forgets the state of limits: each of them is as if it had never been used.
-- Twin: shared_resilience.limits.reset
--
-- KEYS     the state keys, at most a few thousand
-- ARGV[1]  now_us, unused here; every script ends with it
--
-- Reply: { number of keys that held something }

return { redis.call("DEL", unpack(KEYS)) }
