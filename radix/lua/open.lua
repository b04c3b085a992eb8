-- What a mirror starts from: the position in the log, and the members at that very moment.
-- Returns the newest entry's id, Redis' time (s, µs), and for each replica its slot, the batch that is due, and its registration.

local members = {}
for _, name in ipairs(call('ZRANGE', LEASES, 0, -1)) do
  local known = call('HMGET', record_of(name), 'slot', 'next', 'said', 'life')
  if LIFE and known[4] == LIFE then
    members[#members + 1] = known
  end
end
return { call('HGET', META, 'last') or '0-0', call('TIME'), members }
