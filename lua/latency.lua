-- How long the calls of a fleet take: counts them by length, and tells percentiles of the last window.
-- Twin: shared_resilience.latency.record
--
-- The histogram is that of DDSketch (C. Masson, J. E. Rim, H. K. Lee, "DDSketch: a fast and fully-mergeable quantile
-- sketch with relative-error guarantees", VLDB 2019): bucket i holds what is longer than GAMMA^(i-1) microseconds, up
-- to GAMMA^i, and stands for a length that is wrong by 1 % at most.
--
-- KEYS[1]  hash: <width>.<number>.<bucket>, the calls of a slice of so many microseconds; samples, computed_us, and
--          percentiles in microseconds: p<millionths>_us
-- ARGV[1]  window in microseconds, >= 6; it has six slices
-- ARGV[2]  a percentile in millionths, >= 1, that is wanted beside the usual ones
-- ARGV     then pairs of a bucket, >= 0, and how many calls it gets, >= 1
-- ARGV[#]  now_us, "" for the server's clock
--
-- Reply: { samples, p50, p95, p99, p99.9 and the wanted percentile in microseconds, 0 without samples }
--- @include "arguments"
--- @include "clock"
--- @include "count"

local GAMMA, SLICES, LARGEST_BUCKET, SECOND, TWO_HOURS_MS = 1.01 / 0.99, 6, 1400, 1000000, "7200000"
local USUAL = { 500000, 950000, 990000, 999000 }

local window, wanted = argument("window", ARGV[1], SLICES), argument("percentile", ARGV[2], 1)
for index = 3, #ARGV - 2, 2 do
  if (argument("bucket", ARGV[index], 0) or 0) > LARGEST_BUCKET then
    problem = problem or redis.error_reply("ERR bucket must be an integer from 0 to " .. LARGEST_BUCKET)
  end
  argument("calls", ARGV[index + 1], 1)
end
if problem then
  return problem
end

local key, now = KEYS[1], read_clock(ARGV[#ARGV])
local width = math.ceil(window / SLICES)
local number = math.floor(now / width)
for index = 3, #ARGV - 2, 2 do
  local bucket, calls = to_integer(ARGV[index]), to_integer(ARGV[index + 1])
  add_to_count(key, to_text(width) .. "." .. to_text(number) .. "." .. to_text(bucket), to_text(calls))
end

local fields = { "samples", "computed_us" }
local percentiles = { USUAL[1], USUAL[2], USUAL[3], USUAL[4], wanted }
for index, percentile in ipairs(percentiles) do
  fields[index + 2] = "p" .. to_text(percentile) .. "_us"
end
local stored = redis.call("HMGET", key, unpack(fields))
local complete = true
for index = 1, #fields do
  stored[index] = to_integer(stored[index])
  complete = complete and stored[index]
end
local samples, computed = stored[1], stored[2]
if complete and computed <= now and now < computed + SECOND then
  return { samples, unpack(stored, 3, 7) }
end

-- The slices of this window; what is older than its own window is dropped.
local counts, total, gone = {}, 0, {}
local everything = redis.call("HGETALL", key)
for index = 1, #everything, 2 do
  local its_width, its_number, bucket = string.match(everything[index], "^(%d+)%.(%d+)%.(%d+)$")
  if its_width then
    its_width, its_number, bucket = tonumber(its_width), tonumber(its_number), tonumber(bucket)
    local latest = math.floor(now / its_width)
    if its_number > latest or its_number <= latest - SLICES or bucket > LARGEST_BUCKET then
      gone[#gone + 1] = everything[index]
    elseif its_width == width then
      local calls = to_integer(everything[index + 1]) or 0
      counts[bucket] = (counts[bucket] or 0) + calls
      total = total + calls
    end
  end
end
for first = 1, #gone, 1000 do
  redis.call("HDEL", key, unpack(gone, first, math.min(#gone, first + 999)))
end

local reply = { total }
local writes = { "samples", to_text(total), "computed_us", to_text(now) }
for index, percentile in ipairs(percentiles) do
  local rank, bucket = math.ceil(total * percentile / MILLION), 0
  local seen = counts[0] or 0
  while seen < rank do
    bucket = bucket + 1
    seen = seen + (counts[bucket] or 0)
  end
  reply[index + 1] = total > 0 and math.floor(2 * GAMMA ^ bucket / (GAMMA + 1) + 0.5) or 0
  writes[#writes + 1] = fields[index + 2]
  writes[#writes + 1] = to_text(reply[index + 1])
end
redis.call("HSET", key, unpack(writes))
redis.call("PEXPIRE", key, TWO_HOURS_MS)
return reply
