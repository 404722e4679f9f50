std = "lua51"
read_globals = { "redis", "KEYS", "ARGV" }
max_line_length = 120
-- What one script of several that share a fragment does not use.
ignore = { "211/MILLION", "211/to_wait", "211/to_ttl", "211/longest_delay", "211/reply_paused", "211/refuse" }
