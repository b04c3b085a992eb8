-- A slice of all nodes, by holder.
-- ARGV: the first bucket, the most buckets, the most nodes, and a slot ('' for all slots in use).
-- Returns the next bucket, and slot, nodes, slot, nodes, …: a node's key and its parent's (its own for a first block), 16
-- bytes for each.

local number, last, room = tonumber(ARGV[1]), math.min(ARGV[1] + ARGV[2], BUCKETS), tonumber(ARGV[3])
local wanted = {}
for _, slot in ipairs(ARGV[4] == '' and redis.call('HKEYS', SLOTS) or { ARGV[4] }) do
  wanted[mark_of(slot)] = { slot = slot }
end
while number < last and room > 0 do
  local nodes = redis.call('HGETALL', PREFIX .. ':b:' .. number)
  local start = string.char(number % 256, math.floor(number / 256))
  for at = 1, #nodes, 2 do
    local node = nodes[at + 1]
    local pair = start .. nodes[at] .. string.sub(node, 1, 8)
    for place = 9, #node, 2 do
      local found = wanted[string.sub(node, place, place + 1)]
      if found then
        found[#found + 1] = pair
      end
    end
  end
  room = room - #nodes / 2
  number = number + 1
end
local slices = {}
for _, found in pairs(wanted) do
  if #found > 0 then
    slices[#slices + 1] = found.slot
    slices[#slices + 1] = table.concat(found)
  end
end
return { number, slices }
