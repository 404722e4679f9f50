-- Integers as Lua doubles: exact up to 2^53.
local LARGEST = 9007199254740991
local MILLION = 1000000
-- The longest time that is told or kept, 142 years, and the deepest debt: sums with larger ones are no longer exact.
local LONGEST_WAIT = 4503599627370496

-- The integer that `text` holds, else nil. NaN and infinity fail `% 1 == 0`.
local function to_integer(text)
  local number = tonumber(text or nil)
  if number and number % 1 == 0 then
    return number
  end
  return nil
end

-- The digits of an integer. `..` would print 1.7638800001235e+15; "%.0f" is right too, and takes twice the time.
local function to_text(number)
  return string.format("%d", number)
end

-- A time to live in milliseconds that covers `microseconds`: at least a second, since tests have clocks of their own.
local function to_ttl(microseconds)
  return to_text(math.max(1000, math.ceil(microseconds / 1000)))
end
