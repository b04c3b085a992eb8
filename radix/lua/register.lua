-- A replica's registration, or the renewal of its lease.
-- ARGV: name, epoch, registration (JSON), lease in ms.
-- Returns the number of the batch that is due (-1: a block list is wanted first), or nil for a superseded incarnation.

local name, epoch, said = ARGV[1], ARGV[2], ARGV[3]
local record = record_of(name)
local stands, slot, due = standing(name, epoch)
if stands == 'stale' then
  return nil
end
write_even_if_full()
if not LIFE then
  begin_life()
end
if stands == 'unknown' then
  retire_slot(slot)
  due = -1
  call('HSET', record, 'life', LIFE, 'epoch', epoch, 'slot', '0', 'next', '-1', 'said', said)
  log('join ' .. epoch .. ' ' .. name, said)
elseif call('HGET', record, 'said') ~= said then
  call('HSET', record, 'said', said)
  log('join ' .. epoch .. ' ' .. name, said)
end
call('ZADD', LEASES, now_ms() + ARGV[4], name)
return due
