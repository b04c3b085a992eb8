-- A part of a block list.
-- ARGV: slot, token, events (see apply_events). Returns 1, or 0 when the restore was given up meanwhile.

local slot, token = ARGV[1], ARGV[2]
if not is_pending(slot, token) then
  return 0
end
apply_events(slot, ARGV[3])
keep_pending(slot, token)
log('part ' .. slot, ARGV[3])
return 1
