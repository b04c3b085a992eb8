-- A replica's registration, or the renewal of its lease.
-- ARGV: name, epoch, registration (JSON), lease in ms.
-- Returns the number of the batch that is due (-1: a block list is wanted first), or nil for a superseded incarnation.

local name, epoch, said, lease_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local record = record_of(name)
local known = call('HMGET', record, 'epoch', 'slot', 'next', 'said')
local order = known[1] and compare(epoch, known[1]) or 1
if order < 0 then
  return nil
end
local due = -1
if order > 0 then
  if known[1] then
    retire_slot(known[2])
  end
  call('HSET', record, 'epoch', epoch, 'slot', '0', 'next', '-1', 'said', said)
  log('join ' .. epoch .. ' ' .. name, said)
else
  due = tonumber(known[3])
  if said ~= known[4] then
    call('HSET', record, 'said', said)
    log('join ' .. epoch .. ' ' .. name, said)
  end
end
call('ZADD', LEASES, now_ms() + lease_ms, name)
return due
