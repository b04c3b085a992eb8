-- A part of a block list.
-- ARGV: slot, token, how many parts came before, events (see apply_events). Returns 1, or 0 when the restore was given up meanwhile.

local slot, token, parts = ARGV[1], ARGV[2], ARGV[3]
if not is_pending(slot, token, parts) then
  return 0
end
apply_events(slot, ARGV[4])
keep_pending(slot, token, parts + 1)
log('part ' .. slot, ARGV[4])
return 1
