-- One batch of block events, fenced by (epoch, seq).
-- ARGV: name, epoch, seq, '1' if all blocks were cleared before the events, events (see apply_events).
-- Returns the outcome and the number of the batch that is due after it.

local name, epoch, seq = ARGV[1], ARGV[2], tonumber(ARGV[3])
local stands, slot, due = standing(name, epoch)
if stands ~= 'known' then
  return { stands, -1 }
end
if seq ~= due or due < 0 then
  return { seq < due and 'duplicate' or 'gap', due }
end
if ARGV[4] == '1' then
  local fresh = take_slot(name)
  if not fresh then
    return NO_SLOT
  end
  retire_slot(slot)
  slot = fresh
end
apply_events(slot, ARGV[5])
call('HSET', record_of(name), 'slot', slot, 'next', string.format('%.0f', seq + 1))
log('batch ' .. slot .. ' ' .. epoch .. ' ' .. ARGV[3] .. ' ' .. name, ARGV[5])
return { 'applied', seq + 1 }
