-- What every script of the tree begins with: the key names, the log, the slots, and the holders of a node.
--
-- LOG_BYTES is set before this. KEYS[1] is the namespace's prefix, a hash tag: every key begins with it, so that all of them
-- live on one shard.
-- Block keys are strings of 8 bytes, for a Lua number cannot hold 64 bits; epochs are decimal strings for the same reason.
-- A script checks all it was given before its first write: Redis does not undo what a failing script has written.

local call, sub, find = redis.call, string.sub, string.find -- a local is found much quicker than a global's field

local PREFIX = KEYS[1]
local META = PREFIX .. ':meta'        -- hash: life (see begin_life), last (id of the newest log entry), bytes (ever logged), slots (ever made), swept (buckets, ever), watched and mercy (see expire.lua)
local LOG = PREFIX .. ':log'          -- stream: every change, in order
local LEASES = PREFIX .. ':leases'    -- sorted set: replica -> Redis time in ms at which its lease ends
local SLOTS = PREFIX .. ':slots'      -- hash: slot in use -> replica
local PENDING = PREFIX .. ':pending'  -- hash: slot of a restore under way -> its token, parts so far, Redis time in ms at which it is given up
local RETIRED = PREFIX .. ':retired'  -- hash: slot that nodes may still name -> meta.swept when it was retired
local FREE = PREFIX .. ':free'        -- list: slots that no node names any more

local BUCKETS = 65536
local MOST_SLOTS = 65535
local RESTORE_MS = 30000
local UNWATCHED_MS = 2000

-- A tree whose META was lost is not mended but begun anew: what else is left of it belongs to another life.
local LIFE = call('HGET', META, 'life')

local function begin_life()
  local time = call('TIME')
  LIFE = string.format('%s%06d', time[1], tonumber(time[2]))
  call('DEL', LOG, SLOTS, PENDING, RETIRED, FREE)
  call('HSET', META, 'life', LIFE)
end

-- A full Redis lets a script write whose first write needs no memory. For scripts that free some, or keep leases alive.
local function write_even_if_full()
  call('HDEL', META, '-')
end

local function record_of(name)
  return PREFIX .. ':replica:' .. name
end

local function now_ms()
  local time = call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- -1, 0 or 1, as epoch a is older than b, the same, or newer.
local function compare(a, b)
  if a == b then
    return 0
  end
  if #a ~= #b then
    return #a < #b and -1 or 1
  end
  return a < b and -1 or 1
end

-- How the incarnation stands to what is known of that name: 'known', 'stale' (a newer one is here), or 'unknown' (an older
-- one is here, or none); and the slot and the due batch of the one that is here.
local function standing(name, epoch)
  local known = call('HMGET', record_of(name), 'life', 'epoch', 'slot', 'next')
  if not LIFE or known[1] ~= LIFE then
    return 'unknown', '0', -1
  end
  local order = compare(epoch, known[2])
  return order == 0 and 'known' or order < 0 and 'stale' or 'unknown', known[3], tonumber(known[4])
end

-- The log. An entry names the one before it, so that a reader sees when it has missed one, or when Redis came back with an
-- older memory. Ids are <bytes logged so far>-<µs of Redis time>: the log is bounded by its bytes.
local function log(head, body)
  local known = call('HMGET', META, 'last', 'bytes')
  local bytes = tonumber(known[2] or 0) + #body + 64
  local time = call('TIME')
  local id = string.format('%.0f-%s%06d', bytes, time[1], tonumber(time[2]))
  local oldest = string.format('%.0f', math.max(bytes - LOG_BYTES, 0))
  call('XADD', LOG, 'MINID', '~', oldest, id, 'a', known[1] or '0-0', 'h', head, 'e', body)
  call('HSET', META, 'last', id, 'bytes', string.format('%.0f', bytes))
end

-- A slot stands for one generation of one replica's residency. nil when all are in use or unswept.
local function take_slot(name)
  local slot = call('LPOP', FREE)
  if not slot then
    if tonumber(call('HGET', META, 'slots') or 0) >= MOST_SLOTS then
      return nil
    end
    slot = tostring(call('HINCRBY', META, 'slots', 1))
  end
  call('HSET', SLOTS, slot, name)
  return slot
end

local function retire_slot(slot)
  if slot ~= '0' then
    call('HDEL', SLOTS, slot)
    call('HDEL', PENDING, slot)
    call('HSET', RETIRED, slot, call('HGET', META, 'swept') or '0')
  end
end

-- A restore under way is known by its slot and a token, for a wiped Redis counts its slots anew, and by the number of its
-- parts so far, for one that came back with an older memory may have forgotten some.
local function is_pending(slot, token, parts)
  local pending = call('HGET', PENDING, slot)
  return pending and string.match(pending, '^%S+ %d+') == token .. ' ' .. parts
end

local function keep_pending(slot, token, parts)
  call('HSET', PENDING, slot, token .. ' ' .. parts .. ' ' .. string.format('%.0f', now_ms() + RESTORE_MS))
end

local NO_SLOT = redis.error_reply('RADIXGATE every slot is in use; is a router running that sweeps?')

-- A node is a field of one of many small hashes, which Redis packs tightly: bytes 1 and 2 of its key choose the hash, the
-- other six are the field. Its value is its parent's key (its own for a prompt's first block) and two bytes for each holder.
local BUCKET = PREFIX .. ':b:' .. (LIFE or '') .. ':'

local function bucket_at(number)
  return BUCKET .. string.char(number % 256, math.floor(number / 256))
end

local function mark_of(slot)
  return struct.pack('<I2', tonumber(slot))
end

-- Where the mark stands in the node's value, nil when it does not.
local function find_mark(node, mark)
  local at = find(node, mark, 9, true)
  while at and at % 2 == 0 do -- half of one mark and half of the next
    at = find(node, mark, at + 1, true)
  end
  return at
end

-- The children of a node that is new are mostly new, too: then one call is enough for each.
local function store(mark, parent, events, from, to)
  local new = true
  for at = from, to, 8 do
    local key = sub(events, at, at + 7)
    local bucket, field = BUCKET .. sub(key, 1, 2), sub(key, 3)
    local fresh = (parent or key) .. mark
    new = new and call('HSETNX', bucket, field, fresh) == 1
    if not new then
      local node = call('HGET', bucket, field)
      new = not node
      if new or not find_mark(node, mark) then
        call('HSET', bucket, field, new and fresh or node .. mark)
      end
    end
    parent = key
  end
end

local function remove(mark, events, from, to)
  for at = from, to, 8 do
    local bucket, field = BUCKET .. sub(events, at, at + 1), sub(events, at + 2, at + 7)
    local node = call('HGET', bucket, field)
    local found = node and find_mark(node, mark)
    if found and #node == 10 then
      call('HDEL', bucket, field)
    elseif found then
      call('HSET', bucket, field, sub(node, 1, found - 1) .. sub(node, found + 2))
    end
  end
end

-- Events stand one after the other: a letter, the number of keys, for 's' the parent's key, the keys (radix/tree_log.py).
local function apply_events(slot, events)
  local mark = mark_of(slot)
  local at = 1
  while at <= #events do
    local kind, count, keys_at = struct.unpack('<c1I4', events, at)
    local parent
    if kind == 's' then
      parent = sub(events, keys_at, keys_at + 7)
      keys_at = keys_at + 8
    end
    at = keys_at + 8 * count
    if kind == 'r' then
      remove(mark, events, keys_at, at - 1)
    else
      store(mark, parent, events, keys_at, at - 1)
    end
  end
end

-- The incarnation is over: void for routing at once, swept later.
local function forget(name, reason)
  local known = call('HMGET', record_of(name), 'life', 'epoch', 'slot')
  if LIFE and known[1] == LIFE then
    retire_slot(known[3])
    log('leave ' .. known[2] .. ' ' .. name, reason)
  end
  call('DEL', record_of(name))
  call('ZREM', LEASES, name)
end
