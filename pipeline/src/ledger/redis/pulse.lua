#!lua flags=allow-oom
-- Tells of a worker. KEYS: workers. ARGV: its name, what it tells ('': it ends).
local FORGOTTEN_MS = 600000
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
    local heard = tonumber(redis.call('HGET', KEYS[1], name):match('^%d+'))
    if heard < now - FORGOTTEN_MS then redis.call('HDEL', KEYS[1], name) end
end
if ARGV[2] == '' then
    redis.call('HDEL', KEYS[1], ARGV[1])
else
    redis.call('HSET', KEYS[1], ARGV[1], string.format('%d %s', now, ARGV[2]))
end
return 1
