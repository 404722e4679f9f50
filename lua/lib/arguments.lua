--- @include "integers"

-- The first argument that is not what it must be, as an error reply; a script looks here before it writes.
local problem

-- The integer from `low` to LARGEST that the argument `text` holds. Any other is a problem.
local function argument(name, text, low)
  local number = to_integer(text)
  if number and number >= low and number <= LARGEST then
    return number
  end
  problem = problem
    or redis.error_reply("ERR " .. name .. " must be an integer from " .. to_text(low) .. " to 2^53 - 1")
  return nil
end
