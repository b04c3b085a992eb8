-- A replica's whole block list begins to arrive. It gathers under a slot of its own, invisible until it is committed.
-- ARGV: name, epoch, seq, a token of this restore's own. Returns the slot, or the outcome when there is nothing to be done.

local name, epoch, seq = ARGV[1], ARGV[2], tonumber(ARGV[3])
local stands, _, due = standing(name, epoch)
if stands ~= 'known' then
  return stands
end
if seq < due then
  return 'stale'
end
local slot = take_slot(name)
if not slot then
  return NO_SLOT
end
keep_pending(slot, ARGV[4], 0)
return slot
