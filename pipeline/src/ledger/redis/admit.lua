-- Registers products of a scan. KEYS: run, the bucket of each product. ARGV: scan, batch, lease in ms, products.
-- Returns one letter for each: o open, d duplicate, c completed, f failed; nothing where the scan was lost.
-- The reply of the last batch is kept, because a second run of it would find only duplicates. A batch that does not
-- follow the last one means that Redis was set back (a failover, an older file): what came between would be missing from
-- the scan's total, so the scan is lost.
local run, scan, batch = KEYS[1], ARGV[1], ARGV[2]
local now_in = redis.call('HMGET', run, 'scan', 'batch', 'batch_reply')
if now_in[1] ~= scan then return false end
if now_in[2] == batch then return now_in[3] end
if (tonumber(now_in[2]) or 0) + 1 ~= tonumber(batch) then return false end
local reply = {}
local count = {o = 0, c = 0, f = 0, d = 0}
for i = 4, #ARGV do
    local bucket, product = KEYS[i - 2], ARGV[i]
    local known = redis.call('HGET', bucket, product)
    local state = known and known:sub(1, 1) or 'o'
    if known and known:sub(2) == scan then
        state = 'd'
    else
        redis.call('HSET', bucket, product, state .. scan)
    end
    if state == 'r' then state = 'o' end
    reply[#reply + 1] = state
    count[state] = count[state] + 1
end
redis.call('HINCRBY', run, 'scan_total', count.o + count.c + count.f)
redis.call('HINCRBY', run, 'scan_completed', count.c)
redis.call('HINCRBY', run, 'scan_failed', count.f)
local time = redis.call('TIME')
local until_ms = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[3]
local letters = table.concat(reply)
redis.call('HSET', run, 'batch', batch, 'batch_reply', letters, 'scan_until_ms', until_ms)
return letters
