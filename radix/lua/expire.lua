-- Ends the incarnations whose lease ran out, and the restores that were given up. Some router calls it all the time; when
-- nobody did for a while, Redis stood still or could not be reached, and those who live could not renew their leases: they
-- get the time to. (The call that ends such a while may be one that was sent before it.)
-- ARGV: that time, in ms. Returns the names of the replicas.

if not LIFE then
  return {}
end
write_even_if_full()
local now = now_ms()
local known = call('HMGET', META, 'watched', 'mercy')
local mercy = tonumber(known[2] or 0)
local unwatched = now - tonumber(known[1] or 0)
if unwatched > UNWATCHED_MS or unwatched < 0 then -- below 0: Redis' clock was set back
  mercy = now + ARGV[1]
  call('HSET', META, 'mercy', string.format('%.0f', mercy))
end
call('HSET', META, 'watched', string.format('%.0f', now))

local pending = call('HGETALL', PENDING)
for at = 1, #pending, 2 do
  if tonumber(string.match(pending[at + 1], '%d+$')) < now then
    retire_slot(pending[at])
  end
end
if now < mercy then
  return {}
end
local late = call('ZRANGEBYSCORE', LEASES, '-inf', now)
for _, name in ipairs(late) do
  forget(name, 'its lease ran out')
end
return late
