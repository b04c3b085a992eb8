-- A slice of all nodes, as they are.
-- ARGV: the first bucket, the most buckets, the most nodes.
-- Returns the next bucket, and bucket, nodes, bucket, nodes, … for those that are not empty (see common.lua).

local number, last, room = tonumber(ARGV[1]), math.min(ARGV[1] + ARGV[2], BUCKETS), 2 * ARGV[3]
local slice = {}
while number < last and room > 0 do
  local nodes = call('HGETALL', bucket_at(number))
  if #nodes > 0 then
    slice[#slice + 1] = number
    slice[#slice + 1] = nodes
    room = room - #nodes
  end
  number = number + 1
end
return { number, slice }
