-- Ends the incarnations whose lease ran out, and the restores that were given up.
-- Returns the names of the replicas.

local now = now_ms()
local late = call('ZRANGEBYSCORE', LEASES, '-inf', now)
for _, name in ipairs(late) do
  local known = call('HMGET', record_of(name), 'epoch', 'slot')
  if known[1] then
    forget(name, known[1], known[2], 'its lease ran out')
  else
    call('ZREM', LEASES, name)
  end
end
local pending = call('HGETALL', PENDING)
for at = 1, #pending, 2 do
  if tonumber(string.match(pending[at + 1], '%d+$')) < now then
    retire_slot(pending[at])
  end
end
return late
