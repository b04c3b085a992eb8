-- What is known of the incarnation may be wrong: whoever reports it is to hand in its block list before anything else.
-- ARGV: name, epoch. Returns 1, or 0 when no such incarnation is here.

if standing(ARGV[1], ARGV[2]) ~= 'known' then
  return 0
end
call('HSET', record_of(ARGV[1]), 'next', '-1')
return 1
