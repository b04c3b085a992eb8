-- The block list is whole: from here on it is what the replica holds, just before batch seq.
-- ARGV: name, epoch, seq, slot, token, number of parts. Returns the outcome.

local name, epoch, seq, slot = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
if not is_pending(slot, ARGV[5], ARGV[6]) then
  return 'unknown'
end
local stands, before, due = standing(name, epoch)
if stands ~= 'known' or seq < due then
  retire_slot(slot)
  return stands == 'unknown' and 'unknown' or 'stale'
end
call('HDEL', PENDING, slot)
retire_slot(before)
call('HSET', record_of(name), 'slot', slot, 'next', ARGV[3])
log('slot ' .. slot .. ' ' .. epoch .. ' ' .. ARGV[3] .. ' ' .. name, '')
return 'applied'
