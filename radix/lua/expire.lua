-- Ends the incarnations whose lease ran out, and the restores that were given up. Some router calls it all the time; when
-- nobody did for a while, Redis stood still or could not be reached, and those who live could not renew their leases: they
-- get the time to. (The call that ends such a while may be one that was sent before it.)
-- ARGV: that time, in ms. Returns the names of the replicas.

local now = now_ms()
local known = call('HMGET', META, 'watched', 'mercy')
local mercy = tonumber(known[2] or 0)
if now - tonumber(known[1] or 0) > UNWATCHED_MS then
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
  local record = call('HMGET', record_of(name), 'epoch', 'slot')
  if record[1] then
    forget(name, record[1], record[2], 'its lease ran out')
  else
    call('ZREM', LEASES, name)
  end
end
return late
