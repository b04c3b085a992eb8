-- A farewell.
-- ARGV: name, epoch, reason. Returns 1, or 0 when no such incarnation is here.

if standing(ARGV[1], ARGV[2]) ~= 'known' then
  return 0
end
write_even_if_full()
forget(ARGV[1], ARGV[3])
return 1
