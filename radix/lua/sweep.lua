-- A slice of lazy work: takes retired slots out of the nodes of the next buckets, and frees those that a whole round has passed.
-- ARGV: the most buckets, the most nodes. Returns how many slots are still retired.

local retired = call('HGETALL', RETIRED)
if #retired == 0 then
  return 0
end
write_even_if_full()
local gone = {}
for at = 1, #retired, 2 do
  gone[mark_of(retired[at])] = ''
end

local swept = tonumber(call('HGET', META, 'swept') or 0)
local last, room = swept + ARGV[1], 2 * ARGV[2]
while swept < last and room > 0 do
  local bucket = bucket_at(swept % BUCKETS)
  local nodes = call('HGETALL', bucket)
  for at = 1, #nodes, 2 do
    local field, node = nodes[at], nodes[at + 1]
    local kept = string.gsub(sub(node, 9), '..', gone)
    if kept == '' then
      call('HDEL', bucket, field)
    elseif #kept + 8 ~= #node then
      call('HSET', bucket, field, sub(node, 1, 8) .. kept)
    end
  end
  room = room - #nodes
  swept = swept + 1
end
call('HSET', META, 'swept', string.format('%.0f', swept))

local left = #retired / 2
for at = 1, #retired, 2 do
  if swept - retired[at + 1] >= BUCKETS then
    call('HDEL', RETIRED, retired[at])
    call('RPUSH', FREE, retired[at])
    log('free ' .. retired[at], '')
    left = left - 1
  end
end
return left
