-- Integers as Lua doubles: exact up to 2^53, written without exponent (`..` would print 1.7638800001235e+15).
local LARGEST = 9007199254740991
local LONGEST_WAIT = 4503599627370496
local MILLION = 1000000

-- The integer that `text` holds, else nil. NaN and infinity fail `% 1 == 0`.
local function to_integer(text)
  local number = tonumber(text or nil)
  if number and number % 1 == 0 then
    return number
  end
  return nil
end

local function to_text(number)
  return string.format("%.0f", number)
end

-- An error reply that names the argument, unless it is an integer from `low` to LARGEST; else nil.
local function refuse(name, text, low)
  local number = to_integer(text)
  if number and number >= low and number <= LARGEST then
    return nil
  end
  return redis.error_reply("ERR " .. name .. " must be an integer from " .. to_text(low) .. " to 2^53 - 1")
end

-- `microseconds` as a reply may carry them: none below 0, and none above 2^52 (142 years), beyond which the sums that
-- lead to it are no longer exact.
local function to_wait(microseconds)
  return math.max(0, math.min(microseconds, LONGEST_WAIT))
end

-- A time to live in milliseconds that covers `microseconds`: at least a second, since tests have clocks of their own.
local function to_ttl(microseconds)
  return to_text(math.max(1000, math.ceil(microseconds / 1000)))
end
