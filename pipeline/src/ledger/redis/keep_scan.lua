-- Keeps the right to read the input. KEYS: run. ARGV: scan, lease in ms. Returns 1, or 0 where it was lost.
if redis.call('HGET', KEYS[1], 'scan') ~= ARGV[1] then return 0 end
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], 'scan_until_ms', time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[2])
return 1
