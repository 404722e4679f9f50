-- Adds `by` to the count that the hash at `key` has in `field`. What stands there and is no integer begins anew.
local function add_to_count(key, field, by)
  if type(redis.pcall("HINCRBY", key, field, by)) == "table" then
    redis.call("HSET", key, field, by)
  end
end
