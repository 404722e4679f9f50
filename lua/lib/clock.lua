-- The one clock of a decision: the server's, in integer microseconds since 1970. Read once, at the top of a script,
-- since TIME moves during a script before Redis 7.2. A test passes its own `now_us`; everybody else passes "".
local function read_clock(now_us)
  if now_us ~= "" then
    return tonumber(string.match(now_us, "^%d+$")) or error("now_us must be a number of microseconds, or empty")
  end
  local time = redis.call("TIME")
  return time[1] * 1000000 + time[2]
end
