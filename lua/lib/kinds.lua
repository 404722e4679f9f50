-- The kinds of limit that a script can decide: the fragment of each kind enters itself here.
-- A kind has four functions. check(key, now, first, second, third, share) reads a limit as it stands, writes nothing.
-- Its fields `size` (the largest burst), `remaining`, `reset_after` (the time until it is as if unused), `delay` (how
-- long a call that enters now waits for its turn) and `rebased` (the clock went back, the state must be written) are
-- for everybody. wait(limit, cost) is the time until `cost` fits, -1: never. take(limit, cost) charges it, even beyond
-- what remains, and writes; a cost of 0 just writes. give(limit, cost, since) gives it back. All times are in
-- microseconds.
local KINDS = {}
