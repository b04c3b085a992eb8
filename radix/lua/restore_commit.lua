-- The block list is whole: from here on it is what the replica holds, just before batch seq.
-- ARGV: name, epoch, seq, slot, token. Returns the outcome.

local name, epoch, seq, slot = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
if not is_pending(slot, ARGV[5]) then
  return 'unknown'
end
local record = record_of(name)
local known = call('HMGET', record, 'epoch', 'slot', 'next')
local order = known[1] and compare(epoch, known[1]) or 1
if order ~= 0 or seq < tonumber(known[3]) then
  retire_slot(slot)
  return order > 0 and 'unknown' or 'stale'
end
call('HDEL', PENDING, slot)
retire_slot(known[2])
call('HSET', record, 'slot', slot, 'next', ARGV[3])
log('slot ' .. slot .. ' ' .. epoch .. ' ' .. ARGV[3] .. ' ' .. name, '')
return 'applied'
