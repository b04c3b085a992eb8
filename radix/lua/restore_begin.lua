-- A replica's whole block list begins to arrive. It gathers under a slot of its own, invisible until it is committed.
-- ARGV: name, epoch, seq, a token of this restore's own. Returns the slot, or the outcome when there is nothing to be done.

local name, epoch, seq = ARGV[1], ARGV[2], tonumber(ARGV[3])
local known = call('HMGET', record_of(name), 'epoch', 'next')
local order = known[1] and compare(epoch, known[1]) or 1
if order ~= 0 then
  return order < 0 and 'stale' or 'unknown'
end
if seq < tonumber(known[2]) then
  return 'stale'
end
local slot = take_slot(name)
if not slot then
  return NO_SLOT
end
keep_pending(slot, ARGV[4])
return slot
