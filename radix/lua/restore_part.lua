-- A part of a block list.
-- ARGV: slot, events (see apply_events). Returns 1, or 0 when the restore was given up meanwhile.

local slot = ARGV[1]
if call('HEXISTS', PENDING, slot) == 0 then
  return 0
end
apply_events(slot, ARGV[2])
call('HSET', PENDING, slot, now_ms() + RESTORE_MS)
log('part ' .. slot, ARGV[2])
return 1
