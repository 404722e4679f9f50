--- @include "integers"

-- The arithmetic of buckets. All amounts are millionths of a token. The rate is `refill` millionths every `per`
-- microseconds, with refill * per <= 2^53, so that every sum below is an exact integer. Only whole periods are
-- converted into stored tokens; the rest of the time stays in the timestamp, so that no fraction of a token is ever
-- lost. What has dripped in since then counts for the decision all the same; a call that needs it leaves a few
-- millionths of debt.

-- A bucket that held `tokens` at `time`, as it stands at `now`: tokens, their time, and what is available.
local function refilled(tokens, time, now, capacity, refill, per)
  -- The server's clock went back: go on from here, which mints nothing and stalls nothing.
  time = math.min(time, now)
  local available = capacity
  if now - time < math.ceil((capacity - tokens) / refill) * per then
    local periods = math.floor((now - time) / per)
    tokens, time = tokens + periods * refill, time + periods * per
    available = tokens + math.floor((now - time) * refill / per)
  end
  if available >= capacity then
    return capacity, now, capacity
  end
  return tokens, time, available
end

-- Microseconds from `now` until what held `tokens` at `time` holds `goal`.
local function until_it_holds(goal, tokens, time, now, refill, per)
  local periods = math.floor((goal - tokens) / refill)
  local rest = math.ceil((goal - tokens - periods * refill) * per / refill)
  return math.max(0, math.min(periods * per + rest - (now - time), LONGEST_WAIT))
end

local function store_bucket(key, field, amount, time, reset_after)
  redis.call("HSET", key, field, to_text(amount), "time_us", to_text(time))
  redis.call("PEXPIRE", key, to_ttl(reset_after))
end
