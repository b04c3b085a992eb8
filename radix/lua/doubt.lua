-- What is known of the incarnation may be wrong: whoever reports it is to hand in its block list before anything else.
-- ARGV: name, epoch. Returns 1, or 0 when no such incarnation is here.

local record = record_of(ARGV[1])
if redis.call('HGET', record, 'epoch') ~= ARGV[2] then
  return 0
end
redis.call('HSET', record, 'next', '-1')
return 1
