--- @include "integers"

-- Live changes to the numbers of a resource, and its pause; written with redis-cli or by the library.
-- Fields: limit.<label>.<number>, breaker.<number> and the sizes of the bulkhead, as in the resource's `config`; and
-- those of the pause, paused_until_us and paused_for_us.
-- Returns nil where there are none, as mostly: then nothing of what follows is even defined.
local function read_overrides(key)
  local stored = redis.call("HGETALL", key)
  if #stored == 0 then
    return nil
  end
  local overrides = { fields = {}, ignored = "" }
  for index = 1, #stored, 2 do
    overrides.fields[stored[index]] = stored[index + 1]
  end

  local function ignore(field)
    overrides.ignored = overrides.ignored == "" and field or overrides.ignored .. " " .. field
  end

  -- The number that overrides `field`, nil if none does. What is no decimal number from `low` to `high` is ignored, and
  -- its field named in the reply.
  function overrides.number(field, low, high)
    local text = overrides.fields[field]
    if not text then
      return nil
    end
    local number = string.find(text, "^%d+%.?%d*$") and tonumber(text)
    if number and number >= low and number <= high then
      return number
    end
    ignore(field)
    return nil
  end

  -- An integer that overrides `field`: from `low` to `high`, which are 1 and a thousand million unless said.
  function overrides.count(field, low, high)
    local number = overrides.number(field, low or 1, high or 1000000000)
    if number and number % 1 ~= 0 then
      ignore(field)
      return nil
    end
    return number
  end

  -- A rate per second as millionths per period, exact to 6 decimals up to 9000 per second and to 3 decimals above.
  function overrides.rate(field)
    local rate = overrides.number(field, 0.000001, 1000000000)
    if not rate then
      return nil
    end
    local per = rate <= 9000 and 1000000 or 1000
    return math.floor(rate * per + 0.5), per
  end

  -- Microseconds for which the resource is still paused. A pause that seems longer than it was made for was made before
  -- the clock went back: it begins again, once. One that is over is forgotten.
  function overrides.paused(now, may_write)
    local till, length = to_integer(overrides.fields.paused_until_us), to_integer(overrides.fields.paused_for_us)
    if not till then
      return 0
    end
    local left = till - now
    if not length or left <= 0 then
      if may_write then
        redis.call("HDEL", key, "paused_until_us", "paused_for_us")
      end
      return 0
    end
    if left > length then
      left = length
      if may_write then
        redis.call("HSET", key, "paused_until_us", to_text(now + length))
      end
    end
    return left
  end

  return overrides
end
