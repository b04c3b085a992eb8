-- A farewell.
-- ARGV: name, epoch, reason. Returns 1, or 0 when no such incarnation is here.

local name, epoch = ARGV[1], ARGV[2]
local known = call('HMGET', record_of(name), 'epoch', 'slot')
if known[1] ~= epoch then
  return 0
end
forget(name, epoch, known[2], ARGV[3])
return 1
