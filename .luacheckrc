std = "lua51"
read_globals = { "redis", "KEYS", "ARGV" }
max_line_length = 120
-- What one script of several that share a fragment does not use.
ignore = {
  "211/DAY_MS", "211/LARGEST", "211/LONGEST_WAIT", "211/MILLION", "211/to_integer", "211/to_ttl",
  "211/hold_record", "211/is_owner",
}
