-- Nobody calls for a while. KEYS: pace. ARGV: duration in ms.
local time = redis.call('TIME')
local until_ms = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[1]
local known = tonumber(redis.call('HGET', KEYS[1], 'paused_until_ms') or '0')
if until_ms > known then redis.call('HSET', KEYS[1], 'paused_until_ms', string.format('%d', until_ms)) end
return 1
