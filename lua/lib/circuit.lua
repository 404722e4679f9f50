--- @include "arguments"
--- @include "integers"
--- @include "overrides"

-- The circuit of a resource: a state machine over what the whole fleet has seen, in one readable hash.
--   state, mode, generation    a forced mode stands beside the state that it forces
--   calls.<width>.<number>     calls seen in the slot `number` of `width` microseconds; failures and slow likewise
--   worker.<id>                when this worker last told of a failure
--   opened_at_us, retry_at_us, open_for_us, backoff_us, trips, evidence_*    since it opened: when, and by what
--   successes, probe.<token>   while half-open; a probe is a lease, "begin+length"
-- Slots carry their own width, so that callers with other windows read them all the same.
local circuit = {}
local SLOTS, MOST_WORKERS, DAY_US = 10, 16, 86400000000

-- What leads from one state to the next.
local TRANSITIONS = {
  closed = { tripped = "open" },
  open = { due = "half_open" },
  half_open = { failed = "open", recovered = "closed" },
}
local FORCED = { forced_open = "open", forced_closed = "closed", metrics_only = "closed" }

-- The numbers of a configuration in the order of their arguments: name, how much finer the argument is, least, most.
local NUMBERS = {
  { "failure_threshold", 1, 1, 1000000000 },
  { "failure_rate", 1000000, 0, 1 },
  { "window", 1000000, 0.1, 86400 },
  { "minimum_calls", 1, 0, 1000000000 },
  { "slow_call_rate", 1000000, 0.000001, 1 },
  { "success_threshold", 1, 1, 1000000000 },
  { "timeout_seconds", 1000000, 0.001, 86400 },
  { "open_multiplier", 1000, 1, 100 },
  { "max_open_seconds", 1000000, 0.001, 86400 },
  { "jitter", 1000000, 0, 1 },
  { "half_open_max_calls", 1, 1, 1000 },
  { "probe_lease", 1000000, 0.001, 86400 },
  { "min_workers", 1, 1, 100 },
}

-- The numbers in force: those of the caller, or what overrides them. No minimum of calls is that of failures.
function circuit.numbers(overrides)
  local numbers = {}
  for index, number in ipairs(NUMBERS) do
    local name, finer, low, high = unpack(number)
    numbers[name] = argument(name, ARGV[index], math.floor(finer * low + 0.5))
    local read = overrides and (finer == 1 and overrides.count or overrides.number)
    local override = read and read("breaker." .. name, low, high)
    if override then
      numbers[name] = math.floor(override * finer + 0.5)
    end
  end
  if numbers.minimum_calls == 0 then
    numbers.minimum_calls = numbers.failure_threshold
  end
  return numbers
end

-- `microseconds` as a reply may carry them, whatever somebody wrote into the hash.
local function to_wait(microseconds)
  return math.max(0, math.min(microseconds, LONGEST_WAIT))
end

local function put(it, field, value)
  it.writes[#it.writes + 1] = field
  it.writes[#it.writes + 1] = type(value) == "number" and to_text(value) or value
end

-- Counts a slot if any part of it lies in this caller's window. It is stale when the window of its own writer is over,
-- or when it is from before the clock went back.
local function see_slot(it, field, kind, rest)
  local width, number = string.match(rest, "^(%d+)%.(%d+)$")
  width, number = to_integer(width), to_integer(number)
  local count = to_integer(it.fields[field])
  if not (width and count) or number * width > it.now or (number + 1 + SLOTS) * width <= it.now then
    it.stale[#it.stale + 1] = field
  elseif (number + 1) * width > it.now - it.numbers.window then
    it.seen[kind] = it.seen[kind] + count
  end
end

local function see_worker(it, field, id)
  local time = to_integer(it.fields[field])
  it.marked = it.marked + 1
  if time and time <= it.now and time > it.now - it.numbers.window then
    it.failing[#it.failing + 1] = id
  else
    it.lapsed[#it.lapsed + 1] = field
  end
end

-- Counts a lease that lives. One that begins in the future is from before the clock went back, and begins again.
local function see_probe(it, field, token)
  local begin, length = string.match(it.fields[field], "^(%d+)%+(%d+)$")
  begin, length = to_integer(begin), to_integer(length)
  if not begin or begin + length <= it.now then
    it.stale[#it.stale + 1] = field
    return
  end
  if begin > it.now then
    it.begun_again[token] = to_text(it.now) .. "+" .. to_text(length)
  end
  it.probes[token], it.leases = true, it.leases + 1
end

local function see(it)
  for field in pairs(it.fields) do
    local kind, rest = string.match(field, "^(%a+)%.(.+)$")
    if it.seen[kind or ""] then
      see_slot(it, field, kind, rest)
    elseif kind == "worker" then
      see_worker(it, field, rest)
    elseif kind == "probe" then
      see_probe(it, field, rest)
    end
  end
end

-- What was written when the circuit opened. Times that lie further ahead than they can are from before the clock went
-- back: the open time begins again.
local function recall(it)
  local function number(field)
    return to_integer(it.fields[field]) or 0
  end
  it.trips, it.backoff, it.successes = number("trips"), number("backoff_us"), number("successes")
  it.opened_at, it.open_for, it.retry_at = number("opened_at_us"), number("open_for_us"), number("retry_at_us")
  it.seen = { calls = number("evidence_calls"), failures = number("evidence_failures"), slow = number("evidence_slow") }
  it.failing = { it.fields.evidence_workers }
  if it.retry_at > it.now + it.open_for then
    it.retry_at = it.now + it.open_for
    put(it, "retry_at_us", it.retry_at)
  end
  if it.opened_at > it.now then
    it.opened_at = it.now
    put(it, "opened_at_us", it.opened_at)
  end
end

-- Voids all that was seen and lent before: the generation grows, also over a state that was lost.
local function enter(it, state, mode)
  it.state, it.mode, it.generation = state, mode, math.max(it.generation + 1, it.now)
  it.cleared, it.writes, it.probes, it.leases, it.successes = true, {}, {}, 0, 0
  put(it, "state", state)
  put(it, "generation", it.generation)
  if mode ~= "" then
    put(it, "mode", mode)
  end
end

local function forget(it)
  it.seen, it.failing, it.marked = { calls = 0, failures = 0, slow = 0 }, {}, 0
  it.trips, it.backoff, it.opened_at, it.open_for, it.retry_at = 0, 0, it.now, 0, 0
end

-- Reads the circuit at `key`. One that is not there, or not readable, begins as closed. A generation after which
-- none comes that workers could tell is not readable.
function circuit.read(key, now, numbers)
  local it = {
    key = key, now = now, fields = {}, writes = {}, drops = {}, stale = {}, lapsed = {}, caused = 0, leases = 0,
    probes = {}, begun_again = {}, successes = 0, numbers = numbers,
  }
  local stored = redis.call("HGETALL", key)
  for index = 1, #stored, 2 do
    it.fields[stored[index]] = stored[index + 1]
  end
  it.mode = FORCED[it.fields.mode or ""] and it.fields.mode or ""
  it.state, it.generation = FORCED[it.mode] or it.fields.state, to_integer(it.fields.generation)
  forget(it)
  local readable = it.generation and it.generation >= 0 and it.generation < LARGEST
  if not (TRANSITIONS[it.state or ""] and readable) then
    it.generation = 0
    enter(it, FORCED[it.mode] or "closed", it.mode)
    return it
  end
  see(it)
  if it.state ~= "closed" then
    recall(it)
  end
  return it
end

-- Adds what a worker has seen to the present slot.
function circuit.add(it, worker, counts)
  local width = math.ceil(it.numbers.window / SLOTS)
  local slot = "." .. to_text(width) .. "." .. to_text(math.floor(it.now / width))
  for _, field in ipairs(it.stale) do
    it.drops[#it.drops + 1] = field
  end
  for _, kind in ipairs({ "calls", "failures", "slow" }) do
    if counts[kind] > 0 then
      it.seen[kind] = it.seen[kind] + counts[kind]
      put(it, kind .. slot, (to_integer(it.fields[kind .. slot]) or 0) + counts[kind])
    end
  end
  if counts.failures > 0 or counts.slow > 0 and it.numbers.slow_call_rate <= MILLION then
    circuit.blame(it, worker)
  end
end

-- Notes that `worker` has failed, as long as there are not enough others for any quorum.
function circuit.blame(it, worker)
  local field, room = "worker." .. worker, math.max(MOST_WORKERS, it.numbers.min_workers)
  local time = to_integer(it.fields[field])
  local counted = time and time <= it.now and time > it.now - it.numbers.window
  if not it.fields[field] and it.marked >= room then
    for _, lapsed in ipairs(it.lapsed) do
      it.drops[#it.drops + 1] = lapsed
    end
    it.marked, it.lapsed = it.marked - #it.lapsed, {}
  end
  if it.fields[field] or it.marked < room then
    put(it, field, it.now)
    if not counted then
      it.failing[#it.failing + 1] = worker
    end
  end
end

-- Whether what was seen opens the circuit. The live workers are counted only where a quorum is in doubt.
function circuit.is_tripped(it, workers_key)
  local numbers, seen = it.numbers, it.seen
  if it.mode ~= "" or seen.calls < numbers.minimum_calls then
    return false
  end
  local failed = seen.failures >= numbers.failure_threshold
    and seen.failures * MILLION >= numbers.failure_rate * seen.calls
  if not failed and seen.slow * MILLION < numbers.slow_call_rate * seen.calls then
    return false
  end
  return #it.failing >= numbers.min_workers or #it.failing >= redis.call("ZCARD", workers_key)
end

-- Follows `event` to the next state.
function circuit.follow(it, event)
  it.caused = 1
  enter(it, TRANSITIONS[it.state][event], "")
  if it.state == "closed" then
    return forget(it)
  end
  put(it, "trips", it.trips)
  put(it, "backoff_us", it.backoff)
  put(it, "opened_at_us", it.opened_at)
  for kind, count in pairs(it.seen) do
    put(it, "evidence_" .. kind, count)
  end
  put(it, "evidence_workers", table.concat(it.failing, " "))
end

-- Opens the circuit, for longer each time in a row. The jitter draws by `draw` millionths, in ten-thousandths.
function circuit.open(it, event, draw)
  local numbers = it.numbers
  it.trips, it.opened_at = it.trips + 1, it.now
  local longer = math.max(numbers.timeout_seconds, math.floor(it.backoff * numbers.open_multiplier / 1000))
  it.backoff = math.min(numbers.max_open_seconds, longer)
  local stretch = math.floor(numbers.jitter * draw / 100000000)
  it.open_for = it.backoff + math.floor(it.backoff * stretch / 10000)
  it.retry_at = it.now + it.open_for
  circuit.follow(it, event)
  put(it, "retry_at_us", it.retry_at)
  put(it, "open_for_us", it.open_for)
end

-- Lends a probe to `token` if the circuit is half-open and has one left; 1 if so, else 0.
function circuit.lend(it, token)
  if it.state ~= "half_open" or it.leases >= it.numbers.half_open_max_calls then
    return 0
  end
  for _, field in ipairs(it.stale) do
    it.drops[#it.drops + 1] = field
  end
  it.leases = it.leases + 1
  put(it, "probe." .. token, to_text(it.now) .. "+" .. to_text(it.numbers.probe_lease))
  return 1
end

-- Takes the probe of `token` back.
function circuit.take_back(it, token)
  it.drops[#it.drops + 1] = "probe." .. token
  it.probes[token], it.leases = nil, it.leases - 1
end

-- One more successful probe; with enough of them the circuit is closed.
function circuit.succeed(it)
  it.successes = it.successes + 1
  if it.successes >= it.numbers.success_threshold then
    return circuit.follow(it, "recovered")
  end
  put(it, "successes", it.successes)
end

-- The operator's word: whatever was before is over.
function circuit.force(it, state, mode)
  it.caused = 1
  forget(it)
  enter(it, state, mode)
end

-- Writes what has changed. A forced mode has no end, also one that was set by hand; anything else lives for a day, an
-- open circuit beyond its end.
function circuit.save(it)
  for token, lease in pairs(it.begun_again) do
    if it.probes[token] then
      put(it, "probe." .. token, lease)
    end
  end
  if it.cleared then
    redis.call("DEL", it.key)
  elseif #it.drops > 0 then
    redis.call("HDEL", it.key, unpack(it.drops))
  end
  if #it.writes > 0 then
    redis.call("HSET", it.key, unpack(it.writes))
  end
  if it.mode ~= "" then
    redis.call("PERSIST", it.key)
  elseif #it.writes > 0 or #it.drops > 0 then
    redis.call("PEXPIRE", it.key, to_ttl(DAY_US + it.open_for))
  end
end

-- The view of the circuit that every reply brings, after `result` (whether what was asked for was done).
-- { result, 1 if this call changed the state, state, mode, generation, microseconds until a probe may be asked for
--   (-1: never), microseconds since it opened, calls, failures and slow calls in the window or, since it opened, that
--   opened it, the failing workers separated by spaces, consecutive openings, microseconds for which it opened without
--   jitter, probes on loan, successes of probes, the fields of overrides that were ignored, separated by spaces }
function circuit.reply(it, overrides, result)
  local wait = 0
  if it.state == "open" then
    wait = it.mode ~= "" and -1 or to_wait(it.retry_at - it.now)
  end
  return {
    result, it.caused, it.state, it.mode, it.generation, wait, to_wait(it.now - it.opened_at),
    it.seen.calls, it.seen.failures, it.seen.slow, table.concat(it.failing, " "),
    it.trips, to_wait(it.backoff), it.leases, it.successes, overrides and overrides.ignored or "",
  }
end
