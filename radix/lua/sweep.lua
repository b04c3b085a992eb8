-- A slice of lazy work: takes retired slots out of the nodes of the next buckets, and frees those that a whole round has passed.
-- ARGV: how many buckets. Returns how many slots are still retired.

local retired = redis.call('HGETALL', RETIRED)
if #retired == 0 then
  return 0
end
local gone = {}
for at = 1, #retired, 2 do
  gone[mark_of(retired[at])] = true
end

local function without_gone(node)
  local kept = { string.sub(node, 1, 8) }
  for at = 9, #node, 2 do
    local mark = string.sub(node, at, at + 1)
    if not gone[mark] then
      kept[#kept + 1] = mark
    end
  end
  return kept
end

local swept = tonumber(redis.call('HGET', META, 'swept') or 0)
for number = swept, swept + ARGV[1] - 1 do
  local bucket = PREFIX .. ':b:' .. (number % BUCKETS)
  local nodes = redis.call('HGETALL', bucket)
  for at = 1, #nodes, 2 do
    local kept = without_gone(nodes[at + 1])
    if #kept == 1 then
      redis.call('HDEL', bucket, nodes[at])
    elseif 6 + 2 * #kept ~= #nodes[at + 1] then
      redis.call('HSET', bucket, nodes[at], table.concat(kept))
    end
  end
end
swept = swept + ARGV[1]
redis.call('HSET', META, 'swept', string.format('%.0f', swept))

local left = #retired / 2
for at = 1, #retired, 2 do
  if swept - retired[at + 1] >= BUCKETS then
    redis.call('HDEL', RETIRED, retired[at])
    redis.call('RPUSH', FREE, retired[at])
    log('free ' .. retired[at], '')
    left = left - 1
  end
end
return left
