#!lua flags=allow-oom
-- The right to write the results. KEYS: run. ARGV: aggregator, lease in ms. Returns nothing, or who holds it.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local held = redis.call('HMGET', KEYS[1], 'pen_by', 'pen_until_ms')
if held[1] and held[1] ~= ARGV[1] and tonumber(held[2]) > now then return held[1] end
redis.call('HSET', KEYS[1], 'pen_by', ARGV[1], 'pen_until_ms', now + ARGV[2])
return false
