local DAY_MS = "86400000"

-- The length of the lease of `token`, in microseconds.
local function lease_of(token)
  return (tonumber(string.match(token, ":(%d+)$")) or 0) * 1000
end
